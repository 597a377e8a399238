// Preloaded into Portkey, which has no setting for the address that it listens on: loopback alone.
const { Server } = require("node:net");
const { listen } = Server.prototype;
Server.prototype.listen = function (port, host, ready) {
  return listen.call(this, port, "127.0.0.1", ready);
};
