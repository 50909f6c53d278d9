// The findings beside the image, and the worklist.

import type { Case, Layer } from "./case";
import { get, make } from "./dom";
import { areaWords, sentence, trust, valueWords } from "./words";

function icon(name: string): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function withIcon(name: string, words: string): (Node | string)[] {
  return [icon(name), words];
}

export interface Chosen {
  layer(layer: Layer): void;
  toggled(layer: Layer): void;
}

export function showFindings(one: Case | null, chosen: Chosen): void {
  const facts = one?.facts ?? null;
  get("findings").hidden = !facts;
  get("findings-empty").hidden = !!facts;
  if (!one || !facts) return;
  const { word, level } = trust(facts.confidence);
  const card = document.querySelector<HTMLElement>(".trust-card");
  if (card) card.dataset.level = level;
  get("trust-word").textContent = word;
  get("meter").style.width = `${100 * (facts.confidence ?? 0)}%`;
  get("trust-value").textContent = facts.confidence === null ? "" : facts.confidence.toFixed(2);
  get("trust-means").textContent = facts.confidence_means;
  showWarnings(one);
  showStructures(one, chosen);
  showMeasures(one);
  const { model, seconds } = facts;
  const spent = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  get("provenance").textContent =
    `${model.file ?? ""}, ${model.variant}, ${model.policy}, version ${model.version}; ` +
    `SHA-256 ${(model.sha256 ?? "").slice(0, 12)}…; ${spent.toFixed(2)} s`;
}

function showWarnings(one: Case): void {
  const warnings = one.facts?.warnings ?? [];
  get("warning-count").textContent = warnings.length ? String(warnings.length) : "";
  const rows = warnings.map((each) => make("li", { title: each.code }, ...withIcon("warn", ""), make("span", {}, sentence(each.message))));
  get("warnings").replaceChildren(
    ...(rows.length ? rows : [make("li", { class: "none" }, ...withIcon("ok", "Nothing odd about the image or its masks."))]),
  );
}

export function showStructures(one: Case, chosen: Chosen): void {
  get("structures").replaceChildren(
    ...one.layers.map((layer) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = layer.colour;
      const label = layer.edited ? `${layer.label} (corrected)` : layer.label;
      const pick = make(
        "button",
        { type: "button", class: "pick", click: () => chosen.layer(layer), "aria-pressed": String(one.active === layer), title: "Choose for the brush" },
        swatch,
        make("span", { class: "label" }, label),
        make("span", { class: "size" }, areaWords(layer.pixels, trusted(one))),
      );
      const eye = make(
        "button",
        { type: "button", class: "eye", "aria-pressed": String(layer.shown), "aria-label": `Show ${layer.label}`, click: () => chosen.toggled(layer) },
        icon(layer.shown ? "eye" : "off"),
      );
      return make("li", { class: `${one.active === layer ? "active" : ""} ${layer.shown ? "" : "hidden"}` }, pick, eye);
    }),
  );
}

/** The size of a pixel, unless the model doubts it. */
function trusted(one: Case): [number, number] | null {
  return one.facts?.area_mm2 == null ? null : (one.opened?.spacing ?? null);
}

function showMeasures(one: Case): void {
  const measures = Object.entries(one.facts?.measures ?? {});
  get("measures-card").hidden = measures.length === 0;
  get("measures").replaceChildren(
    ...measures.flatMap(([name, measure]) => {
      const words = name.replaceAll("_", " ");
      const term = make("dt", {}, words[0].toUpperCase() + words.slice(1));
      if (measure.value === null) {
        const why = make("dd", { class: "why" }, sentence((measure.withheld ?? []).join("; ").replaceAll("_", " ")));
        return [term, make("dd", { class: "withheld" }, "withheld"), why];
      }
      const big = name.includes("ratio") ? "big" : "";
      return [term, make("dd", { class: big }, valueWords(measure.value, measure.unit))];
    }),
  );
}

export type Order = "added" | "warnings" | "confidence" | "name";

export function ordered(cases: Case[], order: Order): Case[] {
  const failed = (one: Case): number => (one.state === "failed" ? 1 : 0);
  const count = (one: Case): number => one.facts?.warnings.length ?? 0;
  const by: Record<Order, (a: Case, b: Case) => number> = {
    added: (a, b) => a.id - b.id,
    warnings: (a, b) => failed(b) - failed(a) || count(b) - count(a) || a.confidence - b.confidence,
    confidence: (a, b) => a.confidence - b.confidence,
    name: (a, b) => a.file.name.localeCompare(b.file.name),
  };
  return [...cases].sort((a, b) => by[order](a, b) || a.id - b.id);
}

export function showWorklist(cases: Case[], current: Case | null, pick: (one: Case) => void): void {
  get("count").textContent = cases.length ? String(cases.length) : "";
  get("list-actions").hidden = cases.length === 0;
  const list = get("list");
  const focused = (document.activeElement as HTMLElement | null)?.dataset.case;
  list.replaceChildren(
    ...cases.map((one) => {
      const picture = make("img", { class: "thumb", alt: "", width: "56", height: "56" });
      if (one.thumbnail) picture.src = one.thumbnail;
      else picture.src = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
      const button = make(
        "button",
        { type: "button", "data-case": String(one.id), "aria-current": String(one === current), click: () => pick(one), title: one.file.name },
        picture,
        make("span", { class: "entry" }, make("span", { class: "entry-name" }, one.file.name), stateOf(one)),
      );
      button.querySelector<HTMLElement>(".entry-name")!.style.display = "block";
      return make("li", {}, button);
    }),
  );
  if (focused) list.querySelector<HTMLElement>(`[data-case="${focused}"]`)?.focus();
}

function stateOf(one: Case): HTMLElement {
  if (one.state === "failed") return make("span", { class: "entry-state failed", title: one.problem }, ...withIcon("warn", "cannot be used"));
  if (one.state !== "done") return make("span", { class: "entry-state" }, one.state === "working" ? "segmenting…" : "waiting");
  const count = one.facts?.warnings.length ?? 0;
  if (count) return make("span", { class: "entry-state warned" }, ...withIcon("warn", `${count} warning${count > 1 ? "s" : ""}`));
  const sure = one.facts?.confidence;
  return make("span", { class: "entry-state fine" }, ...withIcon("ok", sure == null ? "done" : `confidence ${sure.toFixed(2)}`));
}

/** One row for each radiograph, for a spreadsheet. */
export function table(cases: Case[]): string {
  const measures = [...new Set(cases.flatMap((one) => Object.keys(one.facts?.measures ?? {})))];
  const head = ["image", "status", "confidence", "area_px", "area_mm2", "warnings", "reason", ...measures, "model_sha256"];
  const rows = cases.map((one) => {
    const facts = one.facts;
    return [
      one.file.name,
      one.state,
      facts?.confidence ?? "",
      facts?.area_px ?? "",
      facts?.area_mm2 ?? "",
      (facts?.warnings ?? []).map((each) => each.code).join(" "),
      one.problem,
      ...measures.map((name) => facts?.measures?.[name]?.value ?? ""),
      facts?.model.sha256 ?? "",
    ];
  });
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value: unknown): string {
  let text = String(value);
  // A spreadsheet would run a name that begins so as a formula.
  if (/^[=+\-@\t]/.test(text) && Number.isNaN(Number(text))) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
