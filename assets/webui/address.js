// SPDX-License-Identifier: Apache-2.0
// The open tab is part of the address, as #tab=routing, so that a link can open it and Back returns to the previous
// tab.
slim.address = (component) => {
  const FIRST = "compare", TABS = ["compare", "many", "adapters", "routing", "drift", "forgetting", "model", "about"];
  const here = () => new URLSearchParams(location.hash.slice(1)).get("tab") ?? FIRST;
  const address = (tab) => `${location.pathname}${location.search}${tab === FIRST ? "" : `#tab=${tab}`}`;
  // Tabs that the address asked for and that are not open yet: where Back is pressed twice, the first may open late.
  const asked = new Set();
  let shown = FIRST, begun = false;
  Object.assign(slim.address, {
    // A tab is open: because somebody chose it, or because the address says so.
    at(tab) {
      if (!begun) return; // Gradio says it of the first one too, before it looks at the address.
      shown = tab;
      if (tab === here()) asked.clear();
      else if (!asked.delete(tab)) history.pushState(null, "", address(tab));
    },
    // The tab that Gradio should open.
    wanted: () => ({ __type__: "update", selected: here() }),
  });
  const follow = () => {
    // An unknown tab is ignored: the address shows the open one.
    if (!TABS.includes(here())) history.replaceState(null, "", address(shown));
    else if (here() !== shown) { asked.add(here()); component.trigger("open_tab"); }
  };
  for (const name of ["popstate", "hashchange"]) addEventListener(name, follow);
  addEventListener("slim-turns", () => { begun = true; follow(); }, { once: true });
};
/* The end of a part of SLIM's page 1. */
