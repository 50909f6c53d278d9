// The page: files in, masks out, and everything a hand does between.

import { Case } from "./case";
import type { Layer } from "./case";
import { get, make, save } from "./dom";
import { greyPng } from "./masks";
import { ordered, showFindings, showStructures, showWorklist, table, withIcon } from "./panel";
import type { Order } from "./panel";
import type { Engine, FileKind, ModelInfo } from "./types";
import { Refused } from "./types";
import { Viewer } from "./viewer";
import type { Tool } from "./viewer";
import { valueWords } from "./words";

const FILE_WORDS: Record<FileKind, string> = {
  mask: "Mask PNG",
  labels: "Labels PNG",
  overlay: "Overlay PNG",
  json: "Result JSON",
  contours: "Outlines JSON",
  zip: "All as ZIP",
  dicom: "DICOM objects",
};
const IMAGE = /\.(png|jpe?g|tiff?|bmp|webp|jp2|dcm|dicom|ima)$/i;

export async function start(engine: Engine): Promise<void> {
  await new Page(engine).begin();
}

class Page {
  private cases: Case[] = [];
  private current: Case | null = null;
  private model: ModelInfo | null = null;
  private working = false;
  private asking = false;
  private next: (() => void) | null = null;
  private target: Layer | null = null;
  private readonly viewer: Viewer;
  private readonly canvas = get<HTMLCanvasElement>("canvas");

  constructor(private readonly engine: Engine) {
    this.viewer = new Viewer(this.canvas, {
      box: (box, final) => this.ask({ boxes: [box.map((n) => Math.round(n * 10) / 10)] }, final),
      point: (at, inside) => this.point(at, inside),
      painted: () => this.corrected(),
      moved: () => this.readout(),
    });
  }

  async begin(): Promise<void> {
    this.theme();
    this.listen();
    this.tool("pan");
    this.render();
    try {
      this.model = await this.engine.start((words) => this.busy(words));
      const structures = this.model.structures.map((one) => one.replaceAll("_", " ")).join(", ");
      get("model").textContent = `${this.model.name}${structures ? `: ${structures}` : ""}`;
      get("model").title = `SHA-256 ${this.model.sha256}`;
      document.querySelector<HTMLButtonElement>('[data-tool="point"]')!.disabled = !this.model.points;
      this.busy("");
      document.body.dataset.ready = "true";
      void this.work();
    } catch (error) {
      this.busy("");
      this.hint(messageOf(error), true);
      document.body.dataset.ready = "failed";
    }
  }

  // Files ------------------------------------------------------------------

  private add(files: Iterable<File>): void {
    const all = [...files].filter((file) => !file.name.startsWith(".") && file.size > 0);
    const images = all.length > 1 ? all.filter((file) => IMAGE.test(file.name) || !file.name.includes(".") || /^\d[\d.]*$/.test(file.name)) : all;
    if (all.length > images.length) this.say(`${all.length - images.length} files are no images and were left out`);
    for (const file of images) this.cases.push(new Case(file));
    if (!this.current && this.cases.length) this.pick(this.cases[0]);
    this.render();
    void this.work();
  }

  private async work(): Promise<void> {
    if (this.working || !this.model) return;
    this.working = true;
    for (;;) {
      const waiting = this.cases.filter((one) => one.state === "waiting");
      const one = this.current?.state === "waiting" ? this.current : waiting[0];
      if (!one) break;
      await this.segment(one);
    }
    this.working = false;
  }

  private async segment(one: Case): Promise<void> {
    one.state = "working";
    this.render();
    try {
      one.opened ??= await this.engine.open(one.file);
      if (one === this.current) this.viewer.show(one);
      one.take(await this.engine.ask(one.opened, {}));
      one.thumbnail = this.viewer.thumbnail(one, 112);
      if (one === this.current) this.announce(one);
    } catch (error) {
      one.state = "failed";
      one.problem = messageOf(error);
      if (one === this.current) this.hint(one.problem, true);
    }
    this.render();
    this.viewer.draw();
  }

  private pick(one: Case): void {
    this.current = one;
    this.target = null;
    this.viewer.show(one);
    this.hint(one.state === "failed" ? one.problem : "", one.state === "failed");
    if (one.state === "done") this.announce(one);
    if (matchMedia("(max-width: 760px)").matches) this.tab("stage");
    this.render();
  }

  private step(by: number): void {
    const list = this.sorted();
    const place = this.current ? list.indexOf(this.current) : -1;
    const next = list[Math.min(list.length - 1, Math.max(0, place + by))];
    if (next && next !== this.current) this.pick(next);
    document.querySelector(`[data-case="${next?.id}"]`)?.scrollIntoView({ block: "nearest" });
  }

  private sorted(): Case[] {
    return ordered(this.cases, get<HTMLSelectElement>("sort").value as Order);
  }

  // Prompts ----------------------------------------------------------------

  private point(at: [number, number], inside: boolean): void {
    const one = this.current;
    if (!one || !this.model?.points) return;
    const points = [...(one.prompt.boxes ? [] : (one.prompt.points ?? [])), at.map((n) => Math.round(n * 10) / 10)];
    const labels = [...(one.prompt.boxes ? [] : (one.prompt.labels ?? [])), inside ? 1 : 0];
    this.ask({ points, labels }, false);
  }

  /** Ask with the newest prompt; those that come while one is asked replace one another. */
  private ask(prompt: Case["prompt"], final: boolean): void {
    const one = this.current;
    if (!one?.opened || one.state !== "done") return;
    const opened = one.opened;
    one.prompt = prompt;
    this.canvas.setAttribute("aria-busy", "true");
    const run = async (): Promise<void> => {
      this.asking = true;
      try {
        const answer = await this.engine.ask(opened, prompt);
        this.target = one.follow(answer, this.target);
        this.hint("");
      } catch (error) {
        this.hint(messageOf(error), true);
      }
      this.asking = false;
      if (one === this.current) {
        this.render();
        this.viewer.draw();
      }
      const next = this.next;
      this.next = null;
      if (next) next();
      else {
        this.canvas.setAttribute("aria-busy", "false");
        if (final) this.another(false);
      }
    };
    if (this.asking) this.next = () => void run();
    else void run();
    this.viewer.draw();
  }

  /** Let the next box or point be of an object of its own. */
  private another(clear = true): void {
    this.target = null;
    if (this.current && clear) this.current.prompt = {};
    this.viewer.draw();
  }

  // Corrections ------------------------------------------------------------

  private corrected(): void {
    this.render();
    this.say("corrected");
  }

  private undo(back: boolean): void {
    const one = this.current;
    if (!one || !(back ? one.undo() : one.redo())) return;
    this.render();
    this.viewer.draw();
    this.say(back ? "undone" : "done again");
  }

  // Downloads --------------------------------------------------------------

  private async download(kind: FileKind): Promise<void> {
    const opened = this.current?.opened;
    if (!opened) return;
    try {
      const { data, name } = await this.engine.file(opened, kind);
      save(data, name);
      this.say(`${name} saved`);
    } catch (error) {
      this.hint(messageOf(error), true);
    }
  }

  private async saveLayer(one: Case, layer: Layer): Promise<void> {
    if (!one.opened) return;
    const stem = one.file.name.replace(/\.[A-Za-z]\w{0,4}$/, "");
    const png = await greyPng(layer.data.map((v) => v * 255), one.opened.width, one.opened.height);
    save(png, `${stem}_${layer.key}${layer.edited ? "_corrected" : ""}_mask.png`);
  }

  private showDownloads(one: Case): void {
    const button = (words: string, click: () => void): HTMLElement => make("button", { type: "button", click }, ...withIcon("down", words));
    get("downloads").replaceChildren(
      ...this.engine.files.filter((kind) => kind !== "dicom" || one.opened?.dicom).map((kind) => button(FILE_WORDS[kind], () => void this.download(kind))),
      ...(one.active ? [button(`${one.active.label} PNG`, () => one.active && void this.saveLayer(one, one.active))] : []),
    );
  }

  // What is seen -----------------------------------------------------------

  private render(): void {
    const one = this.current;
    showWorklist(this.sorted(), one, (picked) => this.pick(picked));
    const chosen = {
      layer: (layer: Layer) => {
        if (one) one.active = layer;
        this.render();
        this.viewer.draw();
      },
      toggled: (layer: Layer) => {
        layer.shown = !layer.shown;
        if (one) showStructures(one, chosen);
        this.viewer.draw();
      },
    };
    showFindings(one, chosen);
    if (one?.facts) this.showDownloads(one);
    get("empty").hidden = this.cases.length > 0;
    get<HTMLButtonElement>("undo").disabled = !one?.canUndo;
    get<HTMLButtonElement>("redo").disabled = !one?.canRedo;
    if (this.model) this.busy(one?.state === "working" ? "Segmenting…" : one?.state === "waiting" ? "Waiting…" : "");
    this.canvas.setAttribute("aria-label", this.described(one));
    this.readout();
  }

  private described(one: Case | null): string {
    if (!one) return "No image yet";
    if (!one.facts) return `${one.file.name}: ${one.state}`;
    const layers = one.layers.map((layer) => `${layer.label}, ${layer.pixels} pixels${layer.edited ? ", corrected" : ""}`);
    const sure = one.facts.confidence === null ? "" : ` Confidence ${one.facts.confidence.toFixed(2)}.`;
    const odd = one.facts.warnings.map((each) => ` ${each.message}.`).join("");
    return `${one.file.name}: ${layers.join("; ")}.${sure}${odd}`;
  }

  private announce(one: Case): void {
    this.say(this.described(one));
  }

  private readout(): void {
    const image = this.current?.opened;
    const spans: string[] = [];
    if (image) {
      const ratio = Object.entries(this.current?.facts?.measures ?? {}).find(([name]) => name.includes("cardiothoracic"));
      const spacing = image.spacing ? `  ${image.spacing[0].toFixed(3)} mm` : "";
      spans.push(`${image.width} × ${image.height}${spacing}`);
      if (ratio?.[1].value != null) spans.push(`CTR ${valueWords(ratio[1].value, ratio[1].unit)}`);
      spans.push(`C ${Math.round(this.viewer.level * 100)} W ${Math.round(this.viewer.window * 100)}  ${Math.round(this.viewer.magnification * 100)} %`);
    }
    get("readout").replaceChildren(...spans.map((words) => make("span", {}, words)));
  }

  private busy(words: string): void {
    get("busy").hidden = !words;
    get("busy-words").textContent = words;
  }

  private hint(words: string, bad = false): void {
    const hint = get("hint");
    hint.hidden = !words;
    hint.textContent = words;
    hint.classList.toggle("bad", bad);
    hint.classList.toggle("alone", bad && !this.current?.opened);
    if (words) this.say(words);
  }

  private say(words: string): void {
    get("live").textContent = words;
  }

  private tab(name: string): void {
    document.body.dataset.tab = name;
    for (const each of document.querySelectorAll<HTMLElement>(".tabs button")) each.setAttribute("aria-pressed", String(each.dataset.tab === name));
  }

  private theme(): void {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const set = (name: string): void => void (document.documentElement.dataset.theme = name);
    set(localStorageGet("theme") ?? (dark.matches ? "dark" : "light"));
    dark.addEventListener("change", () => localStorageGet("theme") ?? set(dark.matches ? "dark" : "light"));
    get("theme").addEventListener("click", () => {
      const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      set(name);
      localStorageSet("theme", name);
    });
  }

  private tool(name: Tool): void {
    this.viewer.tool = name;
    get("stage").dataset.tool = name;
    for (const each of document.querySelectorAll<HTMLElement>("[data-tool]")) {
      if (each.tagName === "BUTTON") each.setAttribute("aria-pressed", String(each.dataset.tool === name));
    }
    get("brush-size").hidden = name !== "brush" && name !== "erase";
    this.another(name !== "box" && name !== "point");
  }

  private style(name: "outline" | "fill"): void {
    this.viewer.style = name;
    get("outline").setAttribute("aria-pressed", String(name === "outline"));
    get("fill").setAttribute("aria-pressed", String(name === "fill"));
    get("opacity-row").hidden = name !== "fill";
    this.viewer.draw();
  }

  private invert(): void {
    this.viewer.inverted = !this.viewer.inverted;
    get("invert").setAttribute("aria-pressed", String(this.viewer.inverted));
    this.viewer.draw();
  }

  private resize(by: number): void {
    const input = get<HTMLInputElement>("brush");
    input.value = String(Number(input.value) + by);
    this.viewer.brush = Number(input.value);
    this.viewer.draw();
  }

  // Hands ------------------------------------------------------------------

  private listen(): void {
    const on = (id: string, work: () => void): void => get(id).addEventListener("click", work);
    const files = get<HTMLInputElement>("files");
    const folder = get<HTMLInputElement>("folder-files");
    for (const id of ["add", "choose"]) on(id, () => files.click());
    on("folder", () => folder.click());
    for (const input of [files, folder]) {
      input.addEventListener("change", () => {
        this.add(input.files ?? []);
        input.value = "";
      });
    }
    on("undo", () => this.undo(true));
    on("redo", () => this.undo(false));
    on("fit", () => this.viewer.fit());
    on("invert", () => this.invert());
    on("outline", () => this.style("outline"));
    on("fill", () => this.style("fill"));
    on("help", () => get<HTMLDialogElement>("keys").showModal());
    on("csv", () => save(new Blob([table(this.sorted())], { type: "text/csv" }), "segments.csv"));
    on("clear", () => {
      this.cases = [];
      this.current = null;
      this.viewer.show(null);
      this.hint("");
      this.render();
    });
    get("sort").addEventListener("change", () => this.render());
    get("opacity").addEventListener("input", (event) => {
      this.viewer.opacity = Number((event.target as HTMLInputElement).value) / 100;
      this.viewer.draw();
    });
    get("brush").addEventListener("input", () => this.resize(0));
    get("lines").addEventListener("change", (event) => {
      this.viewer.lines = (event.target as HTMLInputElement).checked;
      this.viewer.draw();
    });
    for (const each of document.querySelectorAll<HTMLElement>(".tools [data-tool]")) each.addEventListener("click", () => this.tool(each.dataset.tool as Tool));
    for (const each of document.querySelectorAll<HTMLElement>(".tabs button")) each.addEventListener("click", () => this.tab(each.dataset.tab ?? "stage"));
    this.tab("stage");
    document.addEventListener("keydown", (event) => this.key(event));
    this.listenDrops();
  }

  private listenDrops(): void {
    const stage = get("stage");
    addEventListener("dragover", (event) => {
      event.preventDefault();
      stage.classList.add("over");
    });
    addEventListener("dragleave", () => stage.classList.remove("over"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      stage.classList.remove("over");
      if (event.dataTransfer) void dropped(event.dataTransfer).then((found) => this.add(found));
    });
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (target.matches("input:not([type=range]):not([type=checkbox]), select") || document.querySelector("dialog[open]")) return;
    const letter = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (letter === "z") {
        event.preventDefault();
        this.undo(!event.shiftKey);
      }
      return;
    }
    const tools: Record<string, Tool> = { v: "pan", w: "window", b: "box", p: "point", d: "brush", e: "erase" };
    const actions: Record<string, () => void> = {
      n: () => this.another(),
      f: () => this.style(this.viewer.style === "fill" ? "outline" : "fill"),
      m: () => {
        this.viewer.masks = !this.viewer.masks;
        this.viewer.draw();
      },
      i: () => this.invert(),
      "+": () => this.viewer.zoom(1.25),
      "=": () => this.viewer.zoom(1.25),
      "-": () => this.viewer.zoom(0.8),
      "0": () => this.viewer.fit(),
      "[": () => this.resize(-4),
      "]": () => this.resize(4),
      arrowup: () => this.step(-1),
      arrowdown: () => this.step(1),
      "?": () => get<HTMLDialogElement>("keys").showModal(),
    };
    if (letter in tools && !(letter === "p" && !this.model?.points)) this.tool(tools[letter]);
    else if (actions[letter] && !(target.matches("input") && letter.startsWith("arrow"))) {
      event.preventDefault();
      actions[letter]();
    }
  }
}

function messageOf(error: unknown): string {
  if (error instanceof Refused) return error.message;
  if (error instanceof TypeError && error.message.includes("fetch")) return "The server does not answer.";
  return error instanceof Error ? error.message : String(error);
}

/** The files of a drop, those in folders among them. */
async function dropped(given: DataTransfer): Promise<File[]> {
  const entries = [...given.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (entries.every((entry) => entry === null)) return [...given.files];
  const found: File[] = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return found;
}

async function walk(entry: FileSystemEntry, found: File[]): Promise<void> {
  if (entry.isFile) {
    found.push(await new Promise<File>((done, failed) => (entry as FileSystemFileEntry).file(done, failed)));
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return;
    for (const each of some.sort((a, b) => a.name.localeCompare(b.name))) await walk(each, found);
  }
}

function localStorageGet(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function localStorageSet(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // A page from a disk may not remember.
  }
}
