// Opens pages in Debian's headless Chromium and prints what a test needs to know, as JSON.
// usage: node check_page.cjs PAGE.html...   the first page is looked at in all ways (none: ""), the
// others in two
"use strict";
const fs = require("fs");
const { chromium } = require("playwright-core");
const axeSource = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

async function open(browser, file, width, colorScheme, result) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
  const page = await context.newPage();
  await context.route("**", (route) => {
    const url = route.request().url();
    if (url === "file://" + file || url.startsWith("data:")) { return route.continue(); }
    result.requests.push(url);
    return route.abort();
  });
  page.on("console", (m) => { if (m.type() === "error" || m.type() === "warning") { result.console.push(m.text()); } });
  page.on("pageerror", (e) => result.console.push("pageerror: " + e.message));
  page.on("dialog", (d) => { result.dialogs.push(d.message()); d.dismiss(); });
  await page.goto("file://" + file);
  return { context, page };
}

function look() {
  const visible = (e) => e.checkVisibility({ checkVisibilityCSS: true });
  return {
    sections: Array.from(document.querySelectorAll("main > section")).map((s) => s.id),
    parts: Array.from(document.querySelectorAll(".part")).map((s) => s.id),
    emptyBare: Array.from(document.querySelectorAll(".empty")).filter((e) => !e.textContent.trim()).length,
    tables: Array.from(document.querySelectorAll("table")).map((t) => ({
      id: t.id, caption: t.caption ? t.caption.textContent : "", rows: t.tBodies[0].rows.length,
      headings: t.tHead.querySelectorAll('th[scope="col"]').length,
    })),
    figures: Array.from(document.querySelectorAll("figure svg")).map((s) => s.getAttribute("aria-label") || ""),
    figuresShown: Array.from(document.querySelectorAll("figure")).map((f) => Array.from(f.querySelectorAll("svg")).filter(visible).length),
    duplicateIds: Array.from(document.querySelectorAll("[id]")).map((e) => e.id).filter((id, i, all) => all.indexOf(id) !== i),
    brokenLinks: Array.from(document.querySelectorAll('a[href^="#"]')).map((a) => a.hash.slice(1)).filter((id) => id && !document.getElementById(id)),
    styleAttributes: document.documentElement.innerHTML.match(/<(path|g|text|use|rect|table|div class="table-box")[^>]* style=/g) || [],
    scripts: document.querySelectorAll("script").length,
    strangers: document.querySelectorAll("main img, main iframe, main object, main embed, main form, main [onerror], main [onload]").length,
    pwned: typeof window.pwned !== "undefined",
    headline: document.querySelector("h1").textContent,
    text: document.querySelector("main").innerText,
  };
}

// Nothing overflows, or nothing has changed for 90 frames, which a busy machine draws slowly.
function settled() {
  const overflow = document.documentElement.scrollWidth - window.innerWidth;
  const before = window.settling || {};
  window.settling = { overflow, frames: before.overflow === overflow ? before.frames + 1 : 0 };
  return overflow <= 0 || window.settling.frames >= 90;
}

async function flame(page) {
  const frames = (pane) => page.locator(`#flame-${pane} .frame`);
  const found = { python: await frames("python").count(), native: await frames("native").count() };
  if (!found.python) { return found; }
  const widthOf = (l) => l.evaluate((e) => e.getBoundingClientRect().width);
  const narrow = page.locator("#flame-python .frame", { hasText: "read" }).first();
  if (await narrow.count()) {
    found.widthBefore = await widthOf(narrow);
    await narrow.click();
    const focused = page.locator("#flame-python .frame:focus");
    found.widthAfter = await widthOf(focused);
    found.focusedName = await focused.getAttribute("aria-label");
    found.dimmed = await page.locator("#flame-python .frame.above").count();
    await page.keyboard.press("Escape");
    found.dimmedAfterEscape = await page.locator("#flame-python .frame.above").count();
  }
  await page.fill("#flame-search", "accept");
  found.hits = await page.locator(".frame.hit").count();
  found.foundText = await page.locator("#flame-found").textContent();
  await page.fill("#flame-search", "no-such-function");
  found.noHits = await page.locator(".frame.hit").count();
  await page.fill("#flame-search", "");
  await page.locator("#flame-python .frame").first().focus();
  const level = () => page.evaluate(() => document.activeElement.getAttribute("aria-level"));
  await page.locator("#flame-python .frame[aria-level='1']").focus();
  const levels = [await level()];
  for (const key of ["ArrowDown", "ArrowDown", "ArrowUp", "Home"]) { await page.keyboard.press(key); levels.push(await level()); }
  found.levels = levels;
  await page.locator("h1").click();
  await page.keyboard.press("/");
  found.slashFocuses = await page.evaluate(() => document.activeElement.id);
  found.processes = await page.locator("#flame-process option").allTextContents();
  if (found.processes.length > 1) {
    await page.selectOption("#flame-process", { index: 1 });
    const root = page.locator(".flame-pane:not([hidden]) .frame[aria-level='1']").first();
    found.otherRoot = (await root.count()) ? await root.textContent() : "";
  }
  return found;
}

// Of any flame graph: a frame inside it zooms to the full width and back, and is found by its name.
async function zoom(page) {
  for (const pane of ["native", "python"]) {
    const inner = await page.locator(`#flame-${pane} .frame`).evaluateAll((frames) => {
      const area = frames.length ? frames[0].parentElement.getBoundingClientRect().width : 0;
      return frames.findIndex((f) => f.textContent && f.getBoundingClientRect().width < 0.9 * area);
    });
    if (inner < 0) { continue; }
    const frame = page.locator(`#flame-${pane} .frame`).nth(inner);
    const name = await frame.textContent();
    const count = await page.locator(`#flame-${pane} .frame`).count();
    await frame.click();
    const share = await page.locator(`#flame-${pane} .frame:focus`).evaluate((f) => f.getBoundingClientRect().width / f.parentElement.getBoundingClientRect().width);
    await page.keyboard.press("Escape");
    const back = await page.locator(`#flame-${pane} .frame`).count();
    await page.fill("#flame-search", name);
    const hits = await page.locator(`#flame-${pane} .frame.hit`).count();
    const foundText = await page.locator("#flame-found").textContent();
    await page.fill("#flame-search", "");
    return { pane, name, share, count, back, hits, foundText };
  }
  return null;
}

async function tables(page) {
  const head = page.locator("#processes-table thead th", { hasText: "Process" }).locator("button");
  if (!(await head.count())) { return null; }
  const names = () => page.locator("#processes-table tbody tr th").allTextContents();
  // As a reader would; left to find a place to click, Playwright scrolls and waits for 1.4 s.
  await head.evaluate((e) => e.scrollIntoView({ block: "center", behavior: "instant" }));
  await head.click();
  const up = await names();
  await head.click();
  const down = await names();
  const folded = () => page.locator("#processes-table tbody tr").evaluateAll((rows) => rows.filter((r) => r.checkVisibility()).length);
  // The same by keyboard: the button of the next column takes the focus and the key.
  const next = page.locator("#processes-table thead th button.sort").nth(1);
  await next.focus();
  await page.keyboard.press("Enter");
  const byKey = await page.locator("#processes-table thead th").nth(1).getAttribute("aria-sort");
  const numbers = await page.locator("#processes-table tbody tr td:nth-child(2)").evaluateAll((c) => c.map((x) => Number(x.dataset.sort)));
  await head.click();
  await head.click();
  const before = await folded();
  const more = page.locator("#processes .more");
  if (await more.count()) { await more.click(); }
  return {
    up, down, byKey, numbers, before, after: await folded(),
    ariaSort: await page.locator("#processes-table thead th").first().getAttribute("aria-sort"),
  };
}

async function copy(page, context) {
  const button = page.locator("#verdict .fix button.copy").first();
  if (!(await button.count())) { return null; }
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await button.click();
  await page.waitForFunction(() => document.querySelector("#verdict .fix button.copy").textContent !== "Copy");
  return { label: await button.textContent(), clipboard: await page.evaluate(() => navigator.clipboard.readText()),
    command: await page.locator("#verdict .fix .command code").first().textContent() };
}

// Contrast, most of the work, goes by the colours and not by the width: looked at in one of them.
async function axe(page, width) {
  await page.evaluate(axeSource);
  await page.evaluate(() => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  // A figure is one image with one label (role=img): what it is drawn of is presentational.
  const what = { include: [["html"]], exclude: [["figure svg > *"]] };
  const rules = { "color-contrast": { enabled: width >= 1000 } };
  const report = await page.evaluate(([w, r]) => window.axe.run(w, { resultTypes: ["violations"], rules: r }), [what, rules]);
  return report.violations.map((v) => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(" | ")}`);
}

// All contexts of a browser have one clipboard: who uses it has it alone.
let clipboard = Promise.resolve();
function withClipboard(work) {
  const done = clipboard.then(work);
  clipboard = done.catch(() => {});
  return done;
}

async function check(browser, file, thorough) {
  const result = { requests: [], console: [], dialogs: [], overflow: {}, axe: {} };
  const ways = thorough ? [[1400, "light"], [1400, "dark"], [360, "light"], [360, "dark"]] : [[1400, "light"]];
  for (const [width, scheme] of ways) {
    const { context, page } = await open(browser, file, width, scheme, result);
    const name = `${width}-${scheme}`;
    result.overflow[name] = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    if (name === "1400-light") {
      result.look = await page.evaluate(look);
      result.zoom = await zoom(page);
      result.flame = await flame(page);
      result.tables = await tables(page);
      result.copy = await withClipboard(() => copy(page, context));
    }
    const huge = (await page.locator("#processes-table tbody tr").count()) > 150;
    if (thorough || !huge) { result.axe[name] = await axe(page, width); }
    result.background = result.background || {};
    result.background[name] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    if (name === "1400-dark") {
      await page.setViewportSize({ width: 720, height: 1000 });
      await page.emulateMedia({ media: "print" });
      result.print = await page.evaluate(() => ({
        overflow: document.documentElement.scrollWidth - window.innerWidth,
        background: getComputedStyle(document.body).backgroundColor,
        text: getComputedStyle(document.querySelector("h1")).color,
        wideFigures: Array.from(document.querySelectorAll("figure")).every((f) => f.querySelector(".wide").checkVisibility()),
        narrowestCell: Math.min(...Array.from(document.querySelectorAll("tbody td")).filter((c) => c.textContent.length > 3 && c.checkVisibility()).map((c) => c.getBoundingClientRect().width)),
        hero: (getComputedStyle(document.querySelector(".hero") || document.body).backgroundColor.match(/\d+/g) || []).map(Number),
      }));
      const pdf = await page.pdf({ format: "A4", margin: { top: "12mm", bottom: "12mm", left: "10mm", right: "10mm" } });
      result.print.pages = (pdf.toString("latin1").match(/\/Type\s*\/Page\b(?!s)/g) || []).length;
      result.print.bytes = pdf.length;
    }
    if (!thorough || width === 360) {
      // The other pages are not loaded anew, only turned narrow and dark.
      await page.setViewportSize({ width: 360, height: 900 });
      await page.emulateMedia({ colorScheme: "dark" });
      // What is laid out anew after a resize (the flame graph) comes with the next frames.
      await page.waitForFunction(settled, null, { timeout: 60000 });
      result.overflow["360-dark"] = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      result.narrowFigures = (await page.evaluate(look)).figuresShown;
    }
    await context.close();
  }
  return result;
}

(async () => {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  const [first, ...others] = process.argv.slice(2);
  const files = [...(first ? [first] : []), ...others];
  const results = {};
  // Two at a time: a page keeps one core busy.
  await Promise.all([0, 1].map(async () => {
    for (let file = files.shift(); file; file = files.shift()) { results[file] = await check(browser, file, file === first); }
  }));
  await browser.close();
  process.stdout.write(JSON.stringify(results));
})().catch((error) => { console.error(error); process.exit(1); });
