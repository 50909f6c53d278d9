// Adds what a page cannot do by itself: sorting, search, ordering, keys, theme.
// Layers and views are switched by the style sheet alone and work without this script.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Tables: a heading sorts; numbers by value, text by locale; empty cells last.
  const compare = (a, b, numeric) => {
    if (a === "" || b === "") return 0;
    return numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
  };
  const isEmpty = (key) => key === "" || key === "nan";
  for (const table of document.querySelectorAll("table.data")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const numeric = head.classList.contains("number");
        const key = (row) => row.cells[column].dataset.sort;
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const gap = isEmpty(key(a)) - isEmpty(key(b));
          return gap || (falling ? -1 : 1) * compare(key(a), key(b), numeric);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Galleries: find, filter, order, enlarge; digits switch layers, arrows walk.
  for (const gallery of document.querySelectorAll(".gallery")) {
    const list = gallery.querySelector(".cases");
    const cases = [...list.children];
    const search = gallery.querySelector("input[type=search]");
    const source = gallery.querySelector("select.source");
    const order = gallery.querySelector("select.order");
    const count = gallery.querySelector(".count");
    const none = gallery.querySelector(".none");

    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of cases) {
        const fits =
          words.every((word) => item.dataset.search.includes(word)) &&
          (!source || !source.value || item.dataset.source === source.value);
        item.hidden = !fits;
        shown += fits;
      }
      count.textContent = shown === cases.length ? `${shown} cases` : `${shown} of ${cases.length} cases`;
      none.hidden = shown > 0;
    };
    search.addEventListener("input", filter);
    source?.addEventListener("change", filter);
    none.querySelector("button").addEventListener("click", () => {
      search.value = "";
      if (source) source.value = "";
      filter();
      search.focus();
    });

    const value = (item, name) => (item.dataset[name] === "" ? Infinity : Number(item.dataset[name]));
    const orders = {
      given: (a, b) => value(a, "given") - value(b, "given"),
      worst: (a, b) => value(a, "score") - value(b, "score"),
      differing: (a, b) => value(b, "differing") - value(a, "differing"),
    };
    order.addEventListener("change", () => list.append(...[...cases].sort(orders[order.value])));

    const enlarge = (item, open) => {
      item.classList.toggle("open", open);
      item.querySelector(".enlarge").setAttribute("aria-expanded", String(open));
    };
    list.addEventListener("click", (event) => {
      const item = event.target.closest(".case");
      if (item && event.target.closest(".enlarge, .stage, .panel")) {
        enlarge(item, !item.classList.contains("open"));
        if (item.classList.contains("open")) item.scrollIntoView({ block: "nearest" });
      }
    });
    gallery.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.matches("input[type=search], select")) return;
      const box = gallery.querySelectorAll("[data-layer]:is(input)")[Number(event.key) - 1];
      if (box) {
        box.click();
        return;
      }
      const item = event.target.closest(".case");
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!item || (!step && event.key !== "Escape")) return;
      event.preventDefault();
      const open = item.classList.contains("open");
      enlarge(item, false);
      const shown = [...list.children].filter((other) => !other.hidden);
      const next = step ? shown[shown.indexOf(item) + step] ?? item : item;
      if (step) enlarge(next, open);
      next.querySelector(".enlarge").focus();
      next.scrollIntoView({ block: "nearest" });
    });
  }

  // Contents: mark where the reader is.
  const links = new Map(
    [...document.querySelectorAll(".side nav a")].map((link) => [link.hash.slice(1), link]),
  );
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id)?.setAttribute("aria-current", "location");
      }
    },
    { rootMargin: "-10% 0px -75% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));

  // Theme: the reader's system decides until the reader does.
  const store = {
    get: () => { try { return localStorage.getItem("adalora-qat-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("adalora-qat-theme", theme); } catch { /* private mode */ } },
  };
  if (store.get()) root.dataset.theme = store.get();
  document.querySelector(".theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    store.set(root.dataset.theme);
  });
  document.querySelector(".print").addEventListener("click", () => print());
})();
