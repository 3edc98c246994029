// node [--perf-basic-prof] hot_code.cjs PORT: a WebSocket echo server whose event loop is kept busy,
// by turnsForever, which computes, and by keepsMuch, which makes work for the garbage collector.
'use strict';
const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ port: Number(process.argv[2]), host: '127.0.0.1' });
server.on('connection', (socket) => {
  socket.on('error', () => {});
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  setImmediate(start);
});

let kept = [];
function keepsMuch() {
  if (kept.length > 200000) kept = [];
  for (let i = 0; i < 2000; i++) kept.push({ i, list: [i] });
}

function turnsForever() {
  let sum = 0;
  for (let i = 0; i < 2e6; i++) sum += Math.sqrt(i) % 7;
  return sum;
}

let isStarted = false;
function start() {
  if (isStarted) return;
  isStarted = true;
  setInterval(() => { keepsMuch(); turnsForever(); }, 0);
}
