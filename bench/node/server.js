'use strict';
// Plain `ws` in a cluster, as its documentation shows it; compression off, as in our server.
// Arguments: address, comma-separated ports, backlog, workers. The scheduling policy comes from
// NODE_CLUSTER_SCHED_POLICY. One JSON line on stdout when every worker listens, one for each worker
// that ends.

const cluster = require('node:cluster');
const { WebSocketServer } = require('ws');

const [address, portList, backlog, workers] = process.argv.slice(2);
const ports = portList.split(',').map(Number);

if (cluster.isPrimary) {
  let listening = 0;
  cluster.on('listening', () => {
    listening += 1;
    if (listening === Number(workers) * ports.length) {
      console.log(JSON.stringify({
        ready: true,
        policy: cluster.schedulingPolicy === cluster.SCHED_RR ? 'rr' : 'none',
        node: process.versions.node,
        ws: require('ws/package.json').version,
      }));
    }
  });
  cluster.on('exit', (worker, code, signal) => {
    console.log(JSON.stringify({ ended: worker.process.pid, code, signal }));
  });
  for (let index = 0; index < Number(workers); index += 1) cluster.fork();
} else {
  for (const port of ports) {
    const server = new WebSocketServer({
      host: address, port, backlog: Number(backlog), perMessageDeflate: false,
    });
    server.on('connection', (socket) => {
      socket.on('error', () => {}); // ws closes it; without a listener the process would end
      socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
    });
  }
}
