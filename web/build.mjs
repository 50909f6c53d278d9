// Builds the page into the package: src/adalora_qat/serve/built.

import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const out = new URL("../src/adalora_qat/serve/built/", import.meta.url);
const WASM = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm";
// Of onnxruntime-web 1.30.0, as npm's lock file pins the package: a change must be meant.
const WASM_SHA256 = "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2";
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const shared = {
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  legalComments: "none",
  loader: { ".wasm": "binary" },
  // The codecs and the runtime ask which file they are; in a worker made of text there is none.
  define: { "import.meta.url": "self.location.href" },
  external: ["fs", "path", "module", "worker_threads"],
};
const worker = await build({ ...shared, entryPoints: ["src/local/worker.ts"], write: false });
const workerText = {
  name: "worker-text",
  setup(on) {
    on.onResolve({ filter: /^worker-text\.worker$/ }, (found) => ({ path: found.path, namespace: "text" }));
    on.onLoad({ filter: /.*/, namespace: "text" }, () => ({ contents: worker.outputFiles[0].text, loader: "text" }));
  },
};
for (const name of ["served", "alone"]) {
  await build({ ...shared, entryPoints: [`src/${name}.ts`], plugins: [workerText], outfile: new URL(`${name}.js`, out).pathname });
}

const page = readFileSync("src/index.html", "utf8");
const made = (policy, script) => page.replace("<!--policy-->", policy).replace("<!--scripts-->", script);
writeFileSync(new URL("index.html", out), made("", '<script src="assets/served.js"></script>'));
const POLICY =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self'; " +
  "img-src 'self' blob: data:; connect-src 'none'; base-uri 'none'; form-action 'none'";
writeFileSync(
  new URL("alone.html", out),
  made(`<meta http-equiv="Content-Security-Policy" content="${POLICY}">`, '<script src="assets/alone.js"></script>').replace('data-engine="server"', 'data-engine="page"'),
);
for (const name of ["style.css", "docs.css", "icon.svg", "offline.js"]) cpSync(`src/${name}`, new URL(name, out));

const wasm = readFileSync(WASM);
const sha256 = createHash("sha256").update(wasm).digest("hex");
if (sha256 !== WASM_SHA256) throw new Error(`${WASM} has the SHA-256 ${sha256}, not ${WASM_SHA256}`);
const part = { sha256, gz: gzipSync(wasm, { level: 9 }).toString("base64") };
writeFileSync(new URL("wasm.js", out), `(globalThis.adaloraParts ??= {}).wasm = ${JSON.stringify(part)};\n`);

const licences = Object.keys(JSON.parse(readFileSync("package.json", "utf8")).dependencies).map((name) => {
  const folder = `node_modules/${name}`;
  const about = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  const text = file && existsSync(`${folder}/${file}`) ? readFileSync(`${folder}/${file}`, "utf8") : "";
  return `${name} ${about.version}: ${about.license}\n\n${text}`.trim();
});
writeFileSync(new URL("licences.txt", out), licences.join("\n\n" + "-".repeat(72) + "\n\n") + "\n");
