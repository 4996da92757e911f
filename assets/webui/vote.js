// SPDX-License-Identifier: Apache-2.0
// Under the answers of a turn: which is the best? The names are revealed after the vote.
slim.vote = (choose) => {
  const { el, put } = slim;
  const question = el("span", {}, "Which answer is the best?"), buttons = el("span", { class: "slim-segments" });
  const said = el("p", { class: "slim-vote-said" });
  const group = el("div", { class: "slim-vote", role: "group", "aria-label": "Vote for the best answer" }, question, buttons);
  const node = el("div", { hidden: true }, group, said);
  let drawn = "";
  return {
    node,
    show(vote) {
      node.hidden = !vote;
      if (!vote) return;
      const key = vote.letters.join();
      if (key !== drawn) {
        drawn = key;
        buttons.replaceChildren(...[...vote.letters.map((letter) => [letter, letter]), ["tie", "No difference"]].map(([choice, text]) =>
          el("button", { type: "button", class: "slim-small", onclick: () => choose(choice) }, text)));
      }
      for (const button of buttons.children) button.disabled = !vote.ready;
      group.hidden = vote.sentence !== "";
      put(said, vote.sentence);
      said.hidden = vote.sentence === "";
    },
  };
};
/* The end of a part of SLIM's page 1. */
