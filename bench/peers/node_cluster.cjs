// `ws` in a cluster, an echo server: PORT WORKERS rr|none. WORKERS 0 is one process without a cluster.
'use strict';
const cluster = require('node:cluster');
const { WebSocketServer } = require('ws');

const [port, workers, scheduling] = process.argv.slice(2);
cluster.schedulingPolicy = scheduling === 'none' ? cluster.SCHED_NONE : cluster.SCHED_RR;

if (cluster.isPrimary && Number(workers)) {
  for (let index = 0; index < Number(workers); index += 1) cluster.fork();
  process.on('SIGTERM', () => process.exit(0));
} else {
  const server = new WebSocketServer({
    host: '127.0.0.1', port: Number(port), perMessageDeflate: false,
  });
  server.on('connection', (socket) => {
    socket.on('error', () => {}); // ws closes it; without a listener the process would end
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
}
