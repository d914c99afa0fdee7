"use strict";
// The ranking that was chosen, of those that were computed when the page was built.

function drawRanks() {
  const on = state.tab === "ranks", select = $("ranking");
  $("ranks").hidden = !on;
  if (!on || !select) return;
  select.value = state.ranking;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  for (const article of document.querySelectorAll("[data-ranking]")) article.hidden = article.dataset.ranking !== select.value;
}
