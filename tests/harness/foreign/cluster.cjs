// node cluster.cjs PORT WORKERS rr|none: echoes; the message "die" ends the worker that gets it
// with status 9, and the primary forks another.
'use strict';
const cluster = require('node:cluster');
const [port, workers, scheduling] = process.argv.slice(2);
if (scheduling === 'none') cluster.schedulingPolicy = cluster.SCHED_NONE;
if (cluster.isPrimary && Number(workers)) {
  for (let i = 0; i < Number(workers); i++) cluster.fork();
  cluster.on('exit', () => cluster.fork());
  process.on('SIGTERM', () => process.exit(0));
} else {
  const { WebSocketServer } = require('ws');
  const server = new WebSocketServer({ port: Number(port), host: '127.0.0.1' });
  server.on('connection', (socket) => {
    socket.on('error', () => {});
    socket.on('message', (data, isBinary) => {
      if (String(data) === 'die') process.exit(9);
      socket.send(data, { binary: isBinary });
    });
  });
}
