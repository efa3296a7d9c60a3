// Reads this page again every few seconds and puts the new live part in the place of the old one, unless
// somebody is at work in it. Where that fails, the live text says so. Without scripts a reload does the same.
"use strict";
(() => {
  const every = 1000 * Number(document.currentScript.dataset.seconds || 10);
  const partOf = (page) => page.querySelector("[data-live]");
  const textOf = (page) => page.querySelector("[data-live-text]");

  function isInUse(part) {
    const selection = window.getSelection();
    const isSelecting = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
    return part.contains(document.activeElement) || isSelecting ||
      part.querySelector("input:checked, details[open]") !== null;
  }

  async function refresh() {
    const part = partOf(document);
    if (document.hidden || part === null || isInUse(part)) return;
    const answer = await fetch(window.location.href, {
      redirect: "error", cache: "no-store", headers: { "X-Live": "1" }, // keeps no session alive
    });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = partOf(page);
    if (!answer.ok || fresh === null) throw new Error(`no live part: ${answer.status}`);
    if (isInUse(part)) return;
    const left = part.querySelector(".scroll")?.scrollLeft ?? 0;
    part.replaceWith(document.adoptNode(fresh));
    const scrolled = fresh.querySelector(".scroll");
    if (scrolled) scrolled.scrollLeft = left;
    say(textOf(page)?.textContent);
  }

  function say(words) {
    const text = textOf(document);
    // Announced only when it says something else.
    if (text && words !== undefined && text.textContent !== words) text.textContent = words;
  }

  async function again() {
    try {
      await refresh();
    } catch {
      // The portal did not answer, or wants a sign-in: what is shown stays, the next time tries again.
      say(partOf(document)?.dataset.stale);
    }
    window.setTimeout(again, every);
  }

  window.setTimeout(again, every);
})();
