// What all views have in common: what can be done with what is shown, and paging.

import { el, text, attribute } from "./dom.js";
import { csv, download, counted, number } from "./words.js";

/** The page that the address asks for; people count from 1. */
export function paged(address, { sizes, sort, direction }, largest) {
  const positive = (name, otherwise) => {
    const value = Number.parseInt(address.get(name), 10);
    return value >= 1 && value < 1e9 ? value : otherwise;
  };
  return {
    page: positive("page", 1) - 1,
    size: Math.min(positive("size", sizes.usual), largest),
    sortField: address.get("sort") || sort,
    direction: address.get("direction") || direction,
  };
}

/** How many there are, and what can be done with them: curl, JSON, CSV. */
export function toolbar({ word, columns, shown, curl }) {
  const count = el("p", { class: "count", "aria-live": "off" });
  const button = (title, onclick, label) => el("button", { onclick, "aria-label": label }, title);
  const element = el("div", { class: "toolbar" }, count, el("div", { class: "tools" },
    button("Show as curl", () => showCurl("This view as a command", curl())),
    button("JSON", () => download(`${word}s.json`, "application/json", JSON.stringify(shown(), null, 2)), "Download what is shown as JSON"),
    button("CSV", () => download(`${word}s.csv`, "text/csv", csv(columns, shown())), "Download what is shown as CSV")));
  return { element, show: (total) => text(count, total === null ? "" : counted(total, word)) };
}

/** The command of an action or a view, to be copied. */
export function showCurl(title, command) {
  const said = el("span", { role: "status" });
  const copy = el("button", { class: "main", onclick: async () => {
    try {
      await navigator.clipboard.writeText(command);
      text(said, "Copied.");
    } catch {
      getSelection().selectAllChildren(box.querySelector("pre"));
      text(said, "Selected: copy it with your keyboard.");
    }
  } }, "Copy");
  const box = dialog(title, el("pre", { tabindex: "0", "aria-label": "Command" }, command),
    el("div", { class: "buttons" }, said, copy, el("button", { onclick: () => box.close() }, "Close")));
  box.showModal();
  copy.focus();
}

/** A dialog that is gone once it is closed. */
export function dialog(title, ...children) {
  const heading = el("h2", { id: "dialog-title" }, title);
  const box = el("dialog", { "aria-labelledby": "dialog-title" }, heading, ...children);
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  return box;
}

/** Which part of all is shown, and the way to the others. */
export function pager(sizes, go) {
  const words = el("p", { class: "range" });
  let page = 0;
  const turn = (step) => (event) => {
    // Not `disabled`, which would take the focus away.
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    go({ page: page + step === 0 ? null : String(page + step + 1) });
  };
  const before = el("button", { onclick: turn(-1) }, "‹ Previous");
  const after = el("button", { onclick: turn(1) }, "Next ›");
  const size = el("select", { "aria-label": "Rows on a page", onchange: () => go({ size: size.value, page: null }) },
    ...sizes.offered.map((it) => el("option", { value: it }, `${it} rows`)));
  const element = el("nav", { class: "pager", "aria-label": "Pages" }, words, before, after, size);
  return {
    element,
    show(pagination, total) {
      page = pagination.page;
      if (![...size.options].some((it) => Number(it.value) === pagination.size)) {
        size.append(el("option", { value: pagination.size }, `${pagination.size} rows`));
      }
      if (document.activeElement !== size) size.value = String(pagination.size);
      const first = page * pagination.size;
      text(words, total ? `${number(first + 1)}–${number(Math.min(first + pagination.size, total))} of ${number(total)}` : "");
      if (total && first >= total) text(words, `Page ${page + 1} is beyond the last of ${number(total)}`);
      attribute(before, "aria-disabled", String(page === 0));
      attribute(after, "aria-disabled", String(first + pagination.size >= total));
    },
  };
}

/**
 * A table's head, whose sortable headings change the address. `by` says what a column is sorted by
 * if that is not what it shows.
 */
export function head(columns, go) {
  const cells = columns.map(({ title, sort, by, hidden, first }) => {
    const inside = sort
      ? el("button", { class: "sort", onclick: () => {
          const turned = cell.getAttribute("aria-sort");
          const direction = turned === "ascending" ? "DESC" : turned === "descending" ? "ASC" : (first ?? "ASC");
          go({ sort, direction, page: null });
        } }, by ?? title)
      : hidden ? el("span", { class: "unseen" }, title) : title;
    const cell = el("th", { role: "columnheader", scope: "col" }, by ? `${title} ` : null, inside);
    if (sort) cell.dataset.sort = sort;
    return cell;
  });
  return {
    element: el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells)),
    show({ sortField, direction }) {
      for (const cell of cells) {
        const sorted = cell.dataset.sort === sortField;
        attribute(cell, "aria-sort", sorted ? (direction.toUpperCase() === "ASC" ? "ascending" : "descending") : null);
      }
    },
  };
}

/** A cell, with its heading for narrow screens. */
export function cell(label, ...children) {
  return el("td", { role: "cell", "data-label": label }, ...children);
}
