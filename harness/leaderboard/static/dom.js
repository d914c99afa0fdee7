"use strict";
// Elements, dialogs and downloads. Text goes into the page as text nodes, never as markup.

const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function linkOrText(url, safe) {
  return safe.startsWith("https://") ? h("a", {href: safe, rel: "noopener nofollow", target: "_blank"}, url) : url;
}

function options(select, values, all, groups) {
  const old = select.value;
  select.replaceChildren(...(all ? [h("option", {value: ""}, all)] : []));
  for (const [value, label, group] of values) {
    const option = h("option", {value}, label);
    if (!groups) { select.append(option); continue; }
    let home = [...select.children].find((child) => child.label === group && child.tagName === "OPTGROUP");
    if (!home) select.append(home = h("optgroup", {label: group}));
    home.append(option);
  }
  select.value = old;
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], {type}));
  const anchor = h("a", {href: url, download: name});
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

let cameFrom = null;

function openDialog(dialog, children) {
  if (!dialog.open) cameFrom = document.activeElement;
  dialog.replaceChildren(h("button", {type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close()}, "×"), ...children);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.querySelector("h2").focus();
}

function dialogClosed(name) {
  state[name] = "";
  save();
  const row = cameFrom && cameFrom.dataset ? cameFrom.dataset.row : null;
  // Rows are drawn as they come into sight: the button may have been made anew.
  const target = cameFrom && cameFrom.isConnected ? cameFrom : row && document.querySelector(`#table [data-row="${row}"]`);
  if (target) target.focus();
}

function facts(pairs) {
  return h("dl", {class: "facts"}, pairs.filter(([, value]) => value !== "" && value !== null).map(([term, value]) =>
    h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

function grid(caption, heads, rows) {
  return h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption}, h("table", {}, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", {scope: "col"}, head)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, place) => (place ? h("td", {}, cell) : h("th", {scope: "row"}, cell))))))));
}

function snippet(label, text, file) {
  const copy = h("button", {type: "button", class: "quiet", onclick: () => copyText(text, copy)}, "Copy");
  const keep = file ? h("button", {type: "button", class: "quiet", onclick: () => download(file, "text/plain", text)}, "Save") : null;
  return h("div", {class: "snippet"}, h("pre", {tabindex: 0, "aria-label": label}, text), h("div", {class: "buttons"}, copy, keep));
}

function copyText(text, button) {
  const old = button.textContent;
  const said = (word) => { button.textContent = word; setTimeout(() => { button.textContent = old; }, 1500); };
  const fallback = () => {
    const area = h("textarea", {"aria-label": "Text to copy"});
    area.value = text;
    (button.closest("dialog") || document.body).append(area);
    area.select();
    said(document.execCommand("copy") ? "Copied" : "Not copied");
    area.remove();
    button.focus();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => said("Copied"), fallback);
  else fallback();
}
