// The model in a server: images go there, and nowhere else.

import type { Answer, Engine, Facts, FileKind, ModelInfo, Opened, Prompt } from "./types";
import { Refused } from "./types";
import { fromRuns } from "./masks";

const BUSY_TRIES = 8;

export class ServerEngine implements Engine {
  readonly files: FileKind[] = ["mask", "overlay", "json", "contours", "zip", "dicom"];
  private token = "";
  private sources = new WeakMap<Opened, File>();

  constructor(private readonly askToken: (wrong: boolean) => Promise<string>) {
    // After the # an address never leaves the browser.
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given) {
      sessionStorage.setItem("token", given);
      history.replaceState(null, "", location.pathname);
    }
    this.token = sessionStorage.getItem("token") ?? "";
  }

  async start(): Promise<ModelInfo> {
    const { models } = await (await this.request("/v1/models")).json();
    const model = models[0];
    return { ...model, points: model.takes.includes("points") };
  }

  async open(file: File): Promise<Opened> {
    const form = new FormData();
    form.append("image", file, file.name);
    const session = await (await this.request("/v1/sessions", { method: "POST", body: form })).json();
    const answer = await this.request(`/v1/sessions/${session.id}/pixels?side=2048`);
    const [width, height, bits] = (answer.headers.get("X-Image") ?? "").split(",").map(Number);
    const bytes = await answer.arrayBuffer();
    const data = bits === 16 ? new Uint16Array(bytes) : new Uint8Array(bytes);
    const opened: Opened = {
      id: session.id,
      name: session.name,
      width: session.width,
      height: session.height,
      spacing: session.spacing_mm,
      dicom: session.files.includes("dicom"),
      grey: { width, height, depth: bits === 16 ? 65535 : 255, data },
    };
    this.sources.set(opened, file);
    return opened;
  }

  async ask(image: Opened, prompt: Prompt): Promise<Answer> {
    return this.again(image, async () => {
      const answer = await this.request(`/v1/sessions/${image.id}/segment`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(prompt),
      });
      const { masks, ...facts } = await answer.json();
      return {
        facts: facts as Facts,
        masks: masks.map((one: { structure: string | null; rle: Parameters<typeof fromRuns>[0] }) => ({
          structure: one.structure,
          data: fromRuns(one.rle),
        })),
      };
    });
  }

  async file(image: Opened, kind: FileKind): Promise<{ data: Blob; name: string }> {
    const answer = await this.request(`/v1/sessions/${image.id}/files/${kind}`);
    const said = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "");
    return { data: await answer.blob(), name: said?.[1] ?? `${kind}` };
  }

  /** A server forgets images in time; the page still has the file. */
  private async again<T>(image: Opened, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const file = this.sources.get(image);
      if (!(error instanceof Refused) || error.code !== "no_such_session" || !file) throw error;
      image.id = (await this.open(file)).id;
      return work();
    }
  }

  private async request(path: string, options: RequestInit = {}): Promise<Response> {
    for (let attempt = 0; ; attempt++) {
      const headers = new Headers(options.headers);
      if (this.token) headers.set("Authorization", `Bearer ${this.token}`);
      const answer = await fetch(path, { ...options, headers, cache: "no-store" });
      if (answer.ok) return answer;
      if (answer.status === 401) {
        this.token = await this.askToken(this.token !== "");
        sessionStorage.setItem("token", this.token);
      } else if (answer.status === 503 && attempt < BUSY_TRIES) {
        const wait = Number(answer.headers.get("Retry-After") ?? 1);
        await new Promise((done) => setTimeout(done, 1000 * wait));
      } else {
        const said = await answer.json().catch(() => ({}));
        throw new Refused(said.error ?? "http", said.detail ?? `the server answered ${answer.status}`);
      }
    }
  }
}
