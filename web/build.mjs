// Builds the page into the package: src/adalora_qat/serve/built.

import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const out = new URL("../src/adalora_qat/serve/built/", import.meta.url);
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

await build({
  entryPoints: ["src/served.ts"],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  outfile: new URL("served.js", out).pathname,
  legalComments: "none",
});
const page = readFileSync("src/index.html", "utf8");
writeFileSync(
  new URL("index.html", out),
  page.replace("<!--policy-->\n", "").replace("<!--scripts-->", '<script src="assets/served.js"></script>'),
);
for (const name of ["style.css", "docs.css", "icon.svg"]) cpSync(`src/${name}`, new URL(name, out));
