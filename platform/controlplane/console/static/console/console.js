// The console's own behaviour: copy, theme, menus, dialogs and the playground's stream. No strings of its own:
// every sentence comes from the page, translated, in data attributes.

class CopyButton extends HTMLElement {
  connectedCallback() {
    this.button = this.querySelector("button");
    this.button.addEventListener("click", () => this.copy());
  }

  async copy() {
    const source = document.getElementById(this.dataset.from);
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    const label = this.querySelector("[data-label]");
    const before = label.textContent;
    label.textContent = this.dataset.copied;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { label.textContent = before; }, 2000);
  }
}

class ThemeSwitch extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", (event) => {
      const button = event.target.closest("button[value]");
      if (!button) return;
      document.cookie = `theme=${button.value};path=/;max-age=31536000;samesite=lax`;
      document.documentElement.dataset.theme = button.value;
      for (const other of this.querySelectorAll("button[value]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    });
  }
}

// Splits a text stream into the data of server-sent events, whatever the cuts between chunks.
async function* events(body) {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

class PlayGround extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.log = this.querySelector("[data-transcript]");
    this.status = this.querySelector("[data-status]");
    this.stop = this.querySelector("[data-stop]");
    this.send = this.querySelector("[data-send]");
    this.key = this.form.elements.key;
    this.turns = [];
    this.key.value = sessionStorage.getItem("moorage-key") ?? "";
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    this.stop.addEventListener("click", () => this.abort.abort());
    this.querySelector("[data-clear]").addEventListener("click", () => this.clear());
    this.form.elements.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
  }

  add(kind, text = "") {
    this.querySelector("[data-empty]").hidden = true;
    const turn = document.createElement("div");
    turn.className = `turn turn-${kind}`;
    turn.dir = "auto";
    turn.textContent = text;
    this.log.append(turn);
    return turn;
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren();
    this.querySelector("[data-empty]").hidden = false;
    this.status.textContent = "";
  }

  busy(is) {
    this.send.disabled = is;
    this.stop.hidden = !is;
    this.log.setAttribute("aria-busy", String(is));
  }

  async ask() {
    const { model, prompt, max_tokens: limit, temperature } = this.form.elements;
    const text = prompt.value.trim();
    sessionStorage.setItem("moorage-key", this.key.value.trim());
    this.add("user", text);
    this.turns.push({ role: "user", content: text });
    prompt.value = "";
    const answer = this.add("assistant");
    answer.classList.add("caret");
    this.abort = new AbortController();
    this.busy(true);
    this.status.textContent = this.dataset.streaming;
    try {
      const response = await fetch(this.dataset.url, {
        method: "POST",
        signal: this.abort.signal,
        headers: {
          "Content-Type": "application/json",
          "X-CSRFToken": this.form.elements.csrfmiddlewaretoken.value,
          Authorization: `Bearer ${this.key.value.trim()}`,
        },
        body: JSON.stringify({
          model: model.value,
          messages: this.turns,
          max_tokens: Number(limit.value),
          temperature: Number(temperature.value),
        }),
      });
      if (!response.ok) throw new Error(this.dataset.refused);
      await this.read(response.body, answer);
      this.status.textContent = this.dataset.done;
    } catch (error) {
      const stopped = error.name === "AbortError";
      this.status.textContent = stopped ? this.dataset.stopped : "";
      if (!stopped) this.fail(error.message);
    } finally {
      answer.classList.remove("caret");
      if (answer.textContent === "") answer.remove();
      if (answer.dataset.content) this.turns.push({ role: "assistant", content: answer.dataset.content });
      else this.turns.pop();
      this.busy(false);
    }
  }

  async read(body, answer) {
    const said = document.createTextNode("");
    let thought = null;
    answer.append(said);
    for await (const data of events(body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      if (event.usage) this.usage(answer, event.usage);
      const delta = event.choices?.[0]?.delta ?? {};
      const thinking = delta.reasoning_content ?? delta.reasoning;
      if (thinking) {
        if (!thought) {
          thought = document.createElement("span");
          thought.className = "turn-reasoning";
          answer.prepend(thought);
        }
        thought.append(thinking);
      }
      if (delta.content) {
        said.data += delta.content;
        answer.dataset.content = said.data;
      }
    }
  }

  usage(answer, usage) {
    let meta = answer.nextElementSibling;
    if (!meta) {
      meta = this.querySelector("template").content.firstElementChild.cloneNode(true);
      answer.after(meta);
    }
    const values = {
      prompt: usage.prompt_tokens,
      cached: usage.prompt_cache_hit_tokens ?? 0,
      answer: usage.completion_tokens,
      cost: usage.cost ? `${usage.cost.currency} ${usage.cost.amount}` : null,
    };
    for (const [name, value] of Object.entries(values)) {
      const place = meta.querySelector(`[data-usage="${name}"]`);
      if (value === null) continue;
      place.closest("[data-usage-item]").hidden = false;
      place.textContent = value;
    }
  }

  fail(message) {
    const note = this.querySelector("[data-error]").content.firstElementChild.cloneNode(true);
    note.querySelector("[data-message]").textContent = message;
    this.log.append(note);
  }
}

customElements.define("copy-button", CopyButton);
customElements.define("theme-switch", ThemeSwitch);
customElements.define("play-ground", PlayGround);

document.querySelector(".rail [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) document.getElementById(opener.dataset.opens).showModal();
  if (event.target.closest("[data-print]")) window.print();
  if (event.target.matches("dialog")) event.target.close();
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest("details.menu[open]");
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});
