// Usage: node node_ws_client.cjs URL; prints one JSON object.
'use strict';
const { WebSocket } = require('ws');
const scenarios = require('./scenarios.cjs');

const once = (emitter, name) =>
  new Promise((resolve) => emitter.once(name, (...values) => resolve(values)));

// What only ws lets a program do: pings, fragments, and a frame without a mask.
async function withFrames(url) {
  const socket = new WebSocket(url);
  await once(socket, 'open');
  const results = {};
  const pong = once(socket, 'pong');
  socket.ping('23');
  results.pong = String((await pong)[0]);
  const message = once(socket, 'message');
  const text = Buffer.from('Gr\u00fc\u00dfe');
  socket.send(text.subarray(0, 3), { binary: false, fin: false });
  socket.ping('between');
  socket.send(text.subarray(3, 5), { binary: false, fin: false });
  socket.send(text.subarray(5), { binary: false, fin: true });
  results.fragments = String((await message)[0]);
  const closed = once(socket, 'close');
  socket.send('not masked', { mask: false });
  const [code, reason] = await closed;
  return { ...results, close: { code, reason: String(reason) } };
}

(async () => {
  const url = process.argv[2];
  const results = await scenarios(WebSocket, url);
  console.log(JSON.stringify({ ...results, frames: await withFrames(url) }));
})();
