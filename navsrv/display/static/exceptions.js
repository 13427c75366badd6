// Owns: what the operator must know that alarms leave out - structures excepted for this tool, and that it is parked.
// An inactivation that nobody sees is a danger: it stands here as long as the server says that it holds.

export class Exceptions {
  /** `end(structure, tool)` returns a promise that rejects with the server's words. */
  constructor({ list, parked }, end) {
    this.list = list;
    this.parked = parked;
    this.end = end;
    this.names = [];
    this.signature = "[]";
  }

  /** Show what the frame of `view` says; nothing while there is no current frame. */
  update(view) {
    const held = view.fault ? [] : (view.frame.exceptions ?? []);
    this.parked.hidden = view.fault || !view.frame.parked;
    const signature = JSON.stringify(held.map(({ structure, reason, by }) => [structure, reason, by]));
    if (signature === this.signature) return;
    this.signature = signature;
    this.names = held.map((one) => one.structure);
    this.list.hidden = held.length === 0;
    this.list.replaceChildren(...held.map((one) => this.item(one, view.frame.tool)));
  }

  item({ structure, reason, by }, tool) {
    const node = document.createElement("div");
    node.className = "exception";
    const words = document.createElement("span");
    const name = document.createElement("strong");
    name.textContent = `No alarms for ${structure}`;
    const why = document.createElement("span");
    why.textContent = ` ${reason} (${by})`;
    words.append(name, why);
    words.title = words.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Watch again";
    button.onclick = async () => {
      button.disabled = true;
      try {
        await this.end(structure, tool);
      } catch (error) {
        why.textContent = ` not ended: ${error.message}`;
      }
      button.disabled = false;
    };
    node.append(words, button);
    return node;
  }
}
