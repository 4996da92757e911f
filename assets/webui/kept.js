// SPDX-License-Identifier: Apache-2.0
// What this browser saves: one conversation and the typed text for each tab. It is not secret, and the server checks
// it like a file. A tab writes only its own data.
slim.kept = (() => {
  const TALK = "slim-kept-", DRAFT = "slim-draft-";
  // Maximum characters and conversations that are saved; the oldest are deleted.
  const MOST = 4000000, MANY = 8;
  const all = (prefix) => {
    const found = [];
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (key.startsWith(prefix)) found.push(key.slice(prefix.length));
      }
    } catch { /* private window */ }
    return found;
  };
  const get = (key) => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } };
  const remove = (key) => { try { localStorage.removeItem(key); } catch { /* private window */ } };
  const oldest = (ids) => ids.map((id) => [get(TALK + id)?.at ?? get(DRAFT + id)?.at ?? 0, id]).sort((a, b) => a[0] - b[0]);

  function room(needed, mine) {
    const size = () => Object.keys(localStorage).reduce((sum, key) => sum + (key.startsWith("slim-") ? localStorage[key].length : 0), 0);
    const ids = [...new Set([...all(TALK), ...all(DRAFT)])].filter((id) => id !== mine);
    const full = (count) => count && (count >= MANY || size() + needed > MOST);
    if (!full(ids.length)) return; // most of the time: what is kept is not even read
    const others = oldest(ids).map(([, id]) => id);
    while (full(others.length)) drop(others.shift());
  }
  function set(prefix, id, value) {
    const text = JSON.stringify({ at: Date.now(), ...value });
    try {
      room(text.length, id);
      localStorage.setItem(prefix + id, text);
    } catch { /* no room at all, or a private window: nothing is kept */ }
  }
  function drop(id) { remove(TALK + id); remove(DRAFT + id); }

  return {
    drop,
    // A conversation as the server wrote it; "" for none.
    talk(id, text) { if (text) set(TALK, id, { text }); else remove(TALK + id); },
    draft(id, text) { if (text) set(DRAFT, id, { text: text.slice(0, MOST / 4) }); else remove(DRAFT + id); },
    // {text, at, turns, last, typed}; null if nothing is saved.
    read(id) {
      const talk = get(TALK + id), draft = get(DRAFT + id);
      const typed = typeof draft?.text === "string" ? draft.text : "";
      let turns = 0, last = "";
      try {
        const prompts = JSON.parse(talk.text).turns.map((turn) => String(turn.prompt));
        [turns, last] = [prompts.length, prompts.at(-1) ?? ""];
      } catch { /* no conversation */ }
      if (!turns && !typed) return null;
      return { text: turns ? talk.text : "", at: (turns ? talk : draft).at, turns, last, typed };
    },
    // The latest that is not one of these.
    latest(but) {
      const ids = [...new Set([...all(TALK), ...all(DRAFT)])].filter((id) => !but.includes(id));
      return oldest(ids).reverse().map(([, id]) => id).find((id) => slim.kept.read(id)) ?? null;
    },
  };
})();

// This tab: its key in the storage, and the server's ticket for its conversation.
slim.tab = (() => {
  const KEY = "slim-tab", WAIT = 150;
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let state = {}, offered = null, channel = null, heard = null;
  try { state = JSON.parse(sessionStorage.getItem(KEY)) ?? {}; } catch { /* a new tab */ }
  const save = () => { try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* private window */ } };
  const begin = (ticket) => { state = { id: random(), ticket }; save(); };

  try {
    channel = new BroadcastChannel("slim-tabs");
    channel.onmessage = ({ data }) => {
      if (data.ask && ready) channel.postMessage({ held: [state.id, offered].filter(Boolean) });
      if (data.held) heard?.push(...data.held);
    };
  } catch { /* no other tab can be asked */ }
  // Conversations that other open tabs show or offer.
  async function held() {
    heard = [];
    channel?.postMessage({ ask: true });
    await new Promise((done) => setTimeout(done, WAIT));
    return heard;
  }
  // A tab that was duplicated brought the other one's name along.
  let ready = false;
  const named = (async () => {
    const known = state.id;
    if (!known || (await held()).includes(known)) begin(null);
    ready = true;
  })();

  return {
    named, held,
    get id() { return state.id; },
    async ticket() { await named; return state.ticket; },
    // The conversation that the server shows here. Another one gets a new name, so that the saved one stays.
    show(ticket) {
      if (state.ticket === ticket) return;
      if (state.ticket) begin(ticket); else { state.ticket = ticket; save(); }
    },
    offer(id) { offered = id; },
    // A name for data that belong to no tab.
    aside: random,
  };
})();
/* The end of a part of SLIM's page 1. */
