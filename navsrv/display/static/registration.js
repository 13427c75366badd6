// Owns: the registration card, and the large panel that asks the operator to judge a proposed registration.
// The operator decides: a verdict is shown, never acted on here.

import { formatAge } from "./alarms.js";
import { isNumber, mm } from "./rows.js";

const VERDICTS = {
  accept: "The check agrees",
  doubt: "The check is in doubt: look closely",
  refuse: "The check refuses this registration",
};

const CONFIRM = "A landmark was touched and fits: confirm";

export class RegistrationView {
  /** `command(op, args)` returns a promise that rejects with the server's words. */
  constructor({ card, panel }, command) {
    this.line = card.querySelector(".registration-line");
    this.detail = card.querySelector(".registration-detail");
    this.confirm = card.querySelector(".registration-confirm");
    this.confirm.onclick = () => this.trust();
    this.card = card;
    this.panel = panel;
    this.command = command;
    this.proposed = null;
    this.connection = null;
    this.id = null;
    this.state = null;
  }

  /**
   * Show what a frame says. `connection` numbers the connections: ids begin anew with a server that was started again,
   * so what is asked belongs to one connection. While there is no current frame the panel is hidden, not emptied: what
   * the server answered to a decision is still there when frames flow again.
   */
  update(view, connection) {
    const registration = view.fault ? null : view.frame.registration;
    this.id = registration?.id ?? null;
    this.state = registration?.state ?? null;
    this.card.dataset.state = registration?.state ?? "unknown";
    setText(this.line, registration ? headline(registration) : "–");
    setText(this.detail, registration ? details(registration) : "");
    this.confirm.hidden = !["unverified", "expired"].includes(this.state);
    if (this.confirm.hidden) setText(this.confirm, CONFIRM);
    const asked = registration?.state === "proposed" ? registration : null;
    const proposal = view.fault ? null : (view.frame.proposal ?? asked);
    const proposed = proposal?.id ?? null;
    const changed = proposed !== this.proposed || connection !== this.connection;
    if (!view.fault && changed) this.showProposal(proposed, proposal, connection);
    this.panel.hidden = proposed === null;
    if (proposed !== null) setText(this.panel.querySelector(".proposal-detail"), details(proposal));
  }

  /** Ask the server to trust a registration in doubt again; the button goes when a frame says so. */
  async trust() {
    this.confirm.disabled = true;
    try {
      await this.command("confirm_registration", { id: this.id });
    } catch (problem) {
      setText(this.confirm, `Not confirmed: ${problem.message}`);
    }
    this.confirm.disabled = false;
  }

  showProposal(id, registration, connection) {
    this.proposed = id;
    this.connection = connection;
    if (id === null) {
      this.panel.replaceChildren();
      return;
    }
    this.panel.innerHTML = `
      <header><h2>Proposed registration</h2><span class="proposal-method"></span></header>
      <div class="proposal-picture"><img alt="The moving image in colour over the CT"></div>
      <p class="proposal-verdict"></p>
      <p class="proposal-detail"></p>
      <p class="proposal-error" hidden></p>
      <div class="proposal-buttons"><button type="button" class="reject">Reject</button><button type="button" class="accept">Accept</button></div>`;
    const at = (selector) => this.panel.querySelector(selector);
    at(".proposal-method").textContent = methodName(registration.method);
    at(".proposal-verdict").textContent = VERDICTS[registration.verdict] ?? `Verdict: ${registration.verdict}`;
    at(".proposal-verdict").dataset.verdict = registration.verdict;
    const picture = at("img");
    const frame = at(".proposal-picture"); // held: when the error comes, the panel may be empty or ask something else
    picture.onerror = () => frame.replaceChildren("The picture could not be loaded: do not accept without it");
    picture.src = `/api/registration/${encodeURIComponent(id)}/overlay`;
    at(".accept").onclick = () => this.decide("accept_registration", id);
    at(".reject").onclick = () => this.decide("reject_registration", id);
  }

  async decide(op, id) {
    const buttons = this.panel.querySelectorAll("button");
    const error = this.panel.querySelector(".proposal-error");
    buttons.forEach((button) => (button.disabled = true));
    error.hidden = true;
    try {
      await this.command(op, { id });
    } catch (problem) {
      error.hidden = false;
      error.textContent = `Not done: ${problem.message}`;
    }
    // The panel goes when a frame says that the registration is no longer proposed, not when the command returns.
    buttons.forEach((button) => (button.disabled = false));
  }
}

function headline({ method, state }) {
  return state === "none" ? "None" : `${methodName(method)} · ${state}`;
}

function details({ state, verdict, tre_mm, age_s }) {
  if (state === "none") return "";
  const parts = [];
  if (isNumber(tre_mm)) parts.push(`TRE ${mm(tre_mm)} mm`);
  if (verdict) parts.push(`verdict ${verdict}`);
  if (isNumber(age_s)) parts.push(`${formatAge(age_s)} ago`);
  return parts.join(" · ");
}

function methodName(method) {
  return { cbct: "CBCT to CT", landmarks: "Landmarks", surface: "Surface", fluoro: "Fluoroscopy" }[method] ?? method ?? "–";
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
