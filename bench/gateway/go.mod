module moorage.dev/bench/gateway

go 1.22
