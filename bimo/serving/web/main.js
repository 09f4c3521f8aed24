// The page: its frame, its views, and which of them is open (the address after # says so).

import { Attention } from "./attention.js";
import { classifyView, summarizeView, translateView } from "./beside.js";
import { Chat } from "./chat.js";
import { h, put } from "./dom.js";
import { GuardView } from "./guard.js";
import { language, remember, setLanguage, t } from "./language.js";
import { Live } from "./live.js";
import { modelField } from "./models.js";
import { Runs } from "./runs.js";

// In the order of the menu, by what one wants to do. A view is made when it is first opened, and stays as it was left.
const GROUPS = [
  ["menu.use", { chat: () => new Chat(), translate: translateView, summarize: summarizeView, classify: classifyView }],
  ["menu.look", { attention: () => new Attention(), guard: () => new GuardView() }],
  ["menu.watch", { live: () => new Live(), runs: () => new Runs() }],
];
const VIEWS = Object.assign({}, ...GROUPS.map(([, views]) => views));
const THEMES = ["", "light", "dark"];

const open = { name: "", views: new Map() };
const main = h("main", { id: "main", tabindex: "-1" });

function start() {
  const skip = h("a", { class: "skip", href: "#main", words: "menu.skip", on: { click: (event) => (event.preventDefault(), main.focus()) } });
  put(document.body, skip, header(), main);
  addEventListener("hashchange", () => route(true));
  document.addEventListener("languagechange", title);
  route(false);
}

function header() {
  const brand = h("a", { class: "brand", href: "#/chat" }, h("img", { src: "/web/icon.svg", alt: "", width: "28", height: "28" }), h("span", {}, "bimo"), h("span", { class: "brand-han", lang: "zh-Hans" }, "笔墨"));
  return h("header", { class: "rail" }, brand, menu(), h("div", { class: "rail-foot" }, modelField(), h("div", { class: "row" }, languageButton(), themeButton())));
}

function menu() {
  const link = (name) => h("li", {}, h("a", { href: `#/${name}`, "data-view": name, words: `view.${name}` }));
  const group = ([words, views]) => h("div", { class: "menu-group" }, h("p", { class: "menu-title", words }), h("ul", {}, Object.keys(views).map(link)));
  return h("nav", { class: "menu", label: "menu.label" }, GROUPS.map(group));
}

/** Show the view that the address names. */
function route(moved) {
  const [wanted, rest = ""] = location.hash.replace(/^#\/?/, "").split("/");
  const name = Object.hasOwn(VIEWS, wanted) ? wanted : "chat";
  if (open.name && open.name !== name) open.views.get(open.name).view.left?.();
  if (!open.views.has(name)) open.views.set(name, made(name));
  for (const [other, { section }] of open.views) section.hidden = other !== name;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const changed = open.name !== name;
  open.name = name;
  document.documentElement.dataset.view = name;
  title();
  const { view, section } = open.views.get(name);
  if (moved && changed) section.querySelector("h1").focus({ preventScroll: true }); // a reader hears where it is now
  if (changed) scrollTo({ top: 0 });
  view.shown?.(decoded(rest));
}

function made(name) {
  const view = VIEWS[name]();
  const heading = h("h1", { tabindex: "-1", words: `view.${name}` });
  const section = h("section", { class: `view view-${name}` }, h("div", { class: "view-head" }, heading, h("p", { class: "lead", words: `lead.${name}` })), view.element);
  put(main, section);
  return { view, section };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function title() {
  document.title = `${t(`view.${open.name}`)} · bimo 笔墨`;
}

function languageButton() {
  const click = () => setLanguage(language() === "zh" ? "en" : "zh");
  return h("button", { type: "button", class: "plain", words: "menu.language", on: { click } });
}

/** As the system has it, light, dark. */
function themeButton() {
  const now = () => document.documentElement.dataset.theme ?? "";
  const button = h("button", { type: "button", class: "plain" });
  const draw = () => put(button, h("span", { words: `theme.${now() || "system"}` }));
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(now()) + 1) % THEMES.length];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    remember("bimo.theme", next);
    button.replaceChildren();
    draw();
    document.dispatchEvent(new Event("themechange"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
  draw();
  return button;
}

start();
