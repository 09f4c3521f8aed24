// Runs before the first paint, so that a chosen theme and language do not flash: the one script that is no module.
(function () {
  "use strict";
  var read = function (key) {
    try { return localStorage.getItem(key); } catch { return null; } // storage can be forbidden
  };
  var theme = read("bimo.theme"), language = read("bimo.language");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  if (!language) language = /^zh\b/i.test(navigator.language) ? "zh" : "en";
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
})();
