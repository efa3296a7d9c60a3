// Loads the page again every few seconds while nobody is busy in it. Without scripts, readers do so themselves.
"use strict";
const seconds = Number(document.currentScript.dataset.seconds);
const isBusy = () =>
  document.hidden || document.querySelector("main details[open]") !== null || document.activeElement.closest("form") !== null;
const again = () => (isBusy() ? setTimeout(again, 1000) : location.replace(location.href));
setTimeout(again, 1000 * seconds);
