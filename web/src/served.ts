// The page of a server.

import { get } from "./dom";
import { start } from "./main";
import { ServerEngine } from "./server";

get("where").textContent = "They go to this server alone, and are kept in memory only.";
get("links").append(linked("/docs", "The interface"), " for programs.");

function linked(href: string, words: string): HTMLAnchorElement {
  const link = document.createElement("a");
  link.href = href;
  link.textContent = words;
  return link;
}

function askToken(wrong: boolean): Promise<string> {
  const dialog = get<HTMLDialogElement>("token-dialog");
  get("token-wrong").hidden = !wrong;
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(get<HTMLInputElement>("token").value), { once: true });
  });
}

void start(new ServerEngine(askToken));
