// Stub stands in for an engine: vLLM's shapes, no work. `user` in the body says how a stream looks:
// "CHUNKS/PACE_MS". Listens where ADDR says.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	prompt    = 17
	id        = `{"id":"chatcmpl-0123456789abcdef","object":"chat.completion`
	made      = `","created":1764000000,"model":"m","choices":[`
	cached    = `,"prompt_tokens_details":{"cached_tokens":16}}`
	reasoning = `,"completion_tokens_details":{"reasoning_tokens":0}}`
)

var (
	piece = `data: ` + id + `.chunk` + made + `{"index":0,"delta":{"content":"` + strings.Repeat("x", 40) +
		`"},"logprobs":null,"finish_reason":`
	answer = id + made + `{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("lorem ipsum ", 60) +
		`","tool_calls":[]},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":` +
		count(128) + cached + `,"prompt_logprobs":null,"kv_transfer_params":null}`
)

type call struct {
	Stream  bool   `json:"stream"`
	User    string `json:"user"`
	Options struct {
		Usage      bool `json:"include_usage"`
		Continuous bool `json:"continuous_usage_stats"`
	} `json:"stream_options"`
}

// count is a usage object without its closing brace.
func count(out int) string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d`, prompt, prompt+out, out)
}

func chat(w http.ResponseWriter, r *http.Request) {
	var asked call
	body, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(body, &asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !asked.Stream {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		io.WriteString(w, answer)
		return
	}
	chunks, pace := 100, 20.0
	fmt.Sscanf(asked.User, "%d/%f", &chunks, &pace)
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	stream(w, r, asked, chunks, time.Duration(pace*float64(time.Millisecond)))
}

func stream(w http.ResponseWriter, r *http.Request, asked call, chunks int, pace time.Duration) {
	flusher := w.(http.Flusher)
	next := time.Now()
	for made := 1; made <= chunks && r.Context().Err() == nil; made++ {
		finish := "null"
		if made == chunks {
			finish = `"length"`
		}
		event := piece + finish + `,"token_ids":null}]`
		if asked.Options.Continuous {
			event += `,"usage":` + count(made) + reasoning
		}
		io.WriteString(w, event+"}\n\n")
		flusher.Flush()
		next = next.Add(pace)
		time.Sleep(time.Until(next))
	}
	if asked.Options.Usage {
		io.WriteString(w, "data: "+id+".chunk"+made+`],"usage":`+count(chunks)+cached+"}\n\n")
	}
	io.WriteString(w, "data: [DONE]\n\n")
}

func models(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"stub"}]}`)
}

func main() {
	http.HandleFunc("POST /v1/chat/completions", chat)
	http.HandleFunc("GET /v1/models", models)
	http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {})
	log.Fatal(http.ListenAndServe(os.Getenv("ADDR"), nil))
}
