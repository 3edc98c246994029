// What any client with the browser's WebSocket interface does against our server. The function is
// also sent to a page as source text, so it uses nothing from outside itself.
'use strict';

module.exports = async function scenarios(WebSocketClass, url) {
  function open() {
    return new Promise((resolve, reject) => {
      const socket = new WebSocketClass(url);
      socket.binaryType = 'arraybuffer';
      const messages = [];
      const waiting = [];
      const peer = { socket };
      peer.next = () =>
        messages.length ? Promise.resolve(messages.shift()) : new Promise((r) => waiting.push(r));
      peer.ask = (message) => {
        socket.send(message);
        return peer.next();
      };
      peer.closed = new Promise((r) => {
        socket.onclose = (event) =>
          r({ code: event.code, reason: event.reason, wasClean: event.wasClean });
      });
      socket.onmessage = (event) =>
        waiting.length ? waiting.shift()(event.data) : messages.push(event.data);
      socket.onopen = () => resolve(peer);
      socket.onerror = () => reject(new Error('the connection failed'));
    });
  }

  const results = { text: [], binary: [] };
  const bystander = await open();
  results.gate = await bystander.ask('gate');

  for (const length of [0, 125, 126, 1009, 70000]) {
    const text = '\u00e9'.repeat(length >> 1) + (length % 2 ? 'x' : '');
    if ((await bystander.ask(text)) === text) results.text.push(length);
    const bytes = Uint8Array.from({ length }, (_, index) => (index * 31) % 256);
    const back = new Uint8Array(await bystander.ask(bytes));
    if (back.length === length && back.every((byte, index) => byte === bytes[index])) {
      results.binary.push(length);
    }
  }
  results.fragments = await bystander.ask('fragments');
  results.ping = await bystander.ask('ping');

  let peer = await open();
  peer.socket.close(4001, 'done');
  results.closedByClient = await peer.closed;
  peer = await open();
  peer.socket.send('close 4002 over');
  results.closedByServer = await peer.closed;
  peer = await open();
  peer.socket.send('violate');
  results.afterViolation = await peer.closed;

  results.bystander = await bystander.ask('still here');
  bystander.socket.close(1000);
  await bystander.closed;
  return results;
};
