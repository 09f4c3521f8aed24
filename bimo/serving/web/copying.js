// Copying text, also where the page came over plain HTTP from another machine and has no clipboard of its own.

import { h } from "./dom.js";
import { t } from "./language.js";

export async function copyText(text, told) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "unseen", readonly: true });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    document.execCommand("copy"); // old, and the only way without a secure context
    area.remove();
    before?.focus();
  }
  if (told) told.textContent = t("state.copied");
}
