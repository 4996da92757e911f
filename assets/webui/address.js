// SPDX-License-Identifier: Apache-2.0
// The open tab is part of the address, as #tab=routing, so that a link can open it and Back returns to the previous
// tab.
slim.address = (component) => {
  const TABS = component.props.value, FIRST = TABS[0];
  const here = () => new URLSearchParams(location.hash.slice(1)).get("tab") ?? FIRST;
  const address = (tab) => `${location.pathname}${location.search}${tab === FIRST ? "" : `#tab=${tab}`}`;
  let shown = FIRST, begun = false;
  // The tab that Back or Forward asked for, until Gradio has opened it: until then its events are not a visitor's
  // choice.
  let asked = null;
  Object.assign(slim.address, {
    // A tab is open: because somebody chose it, or because the address says so.
    at(tab) {
      if (!begun) return; // Gradio reports the first tab too, before it reads the address.
      // Gradio may report a tab late, after it has opened another one. A phone's menu of more tabs marks none as selected.
      const selected = document.querySelector("#slim-tabs [role=tab][aria-selected=true]");
      if (selected && selected.dataset.tabId !== tab) return;
      shown = tab;
      if (tab === here()) asked = null;
      else if (asked === null) history.pushState(null, "", address(tab));
    },
    // The tab that Gradio should open.
    wanted: () => ({ __type__: "update", selected: here() }),
  });
  const follow = () => {
    // An unknown tab is ignored: the address shows the open one.
    if (!TABS.includes(here())) history.replaceState(null, "", address(shown));
    else if (asked !== null || here() !== shown) { asked = here(); component.trigger("open_tab"); }
  };
  for (const name of ["popstate", "hashchange"]) addEventListener(name, follow);
  // If the tab asked for is open already, Gradio reports nothing. Whoever clicks or types now chooses for themselves.
  for (const name of ["click", "keydown"]) addEventListener(name, () => { asked = null; }, true);
  addEventListener("slim-turns", () => { begun = true; follow(); }, { once: true });
};
/* The end of a part of SLIM's page 1. */
