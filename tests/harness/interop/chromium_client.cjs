// Usage: node chromium_client.cjs PORT USER-DATA-DIRECTORY; prints one JSON object.
'use strict';
const { chromium } = require('playwright-core');
const scenarios = require('./scenarios.cjs');

(async () => {
  const [port, userData] = process.argv.slice(2);
  const context = await chromium.launchPersistentContext(userData, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    headless: true,
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
  try {
    const page = await context.newPage();
    // Our own refusal is the page, so that page and WebSocket share an origin.
    const response = await page.goto(`http://127.0.0.1:${port}/`);
    const refusal = { status: response.status(), text: (await response.text()).trim() };
    const source = `(${scenarios})(WebSocket, 'ws://127.0.0.1:${port}/')`;
    console.log(JSON.stringify({ refusal, ...(await page.evaluate(source)) }));
  } finally {
    await context.close();
  }
})();
