// Pictures of pages as headless Chromium shows them: wide and narrow, light and dark.
// usage: node screenshots.cjs FOLDER NAME=PAGE.html...   prints the files it wrote
// FOLDER/NAME-WIDTH-SCHEME.png is the whole page, FOLDER/NAME-first-screen.png what comes first.
"use strict";
const path = require("path");
const { createRequire } = require("module");
const { chromium } = createRequire(path.join(__dirname, "../tests/package.json"))("playwright-core");

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const WIDTHS = { wide: 1280, narrow: 390 };

(async () => {
  const [folder, ...pages] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  for (const pair of pages) {
    const at = pair.indexOf("=");
    const name = pair.slice(0, at), file = path.resolve(pair.slice(at + 1));
    for (const [size, width] of Object.entries(WIDTHS)) {
      for (const colorScheme of ["light", "dark"]) {
        const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
        const page = await context.newPage();
        await page.goto("file://" + file);
        const picture = path.join(folder, `${name}-${size}-${colorScheme}.png`);
        await page.screenshot({ path: picture, fullPage: true });
        console.log(picture);
        if (size === "wide" && colorScheme === "light") {
          const first = path.join(folder, `${name}-first-screen.png`);
          await page.screenshot({ path: first });
          console.log(first);
        }
        await context.close();
      }
    }
  }
  await browser.close();
})().catch((error) => { console.error(error.message); process.exit(1); });
