// Owns: alarm sounds and the words that say whether they are on. One sound at a time, that of the highest priority.
// A pause is the server's and counts in every display: this page only asks for it and shows what is left.
// An ordinary browser cannot promise its loudness: the sound is a help, the banner is the alarm.

// Pulses of one burst (start in s, and Hz), pulse length in s, and seconds from burst to burst.
const BURSTS = {
  high: { pulses: [[0, 523], [0.2, 523], [0.4, 698], [0.85, 784], [1.05, 880]], length: 0.14, twice: 1.7, every: 8 },
  medium: { pulses: [[0, 523], [0.32, 523], [0.64, 659]], length: 0.2, every: 15 },
  low: { pulses: [[0, 440]], length: 0.2, every: 30 },
};
const HARMONICS = [1, 0.6, 0.5, 0.4, 0.3]; // a fundamental and four partials, so that the ear can place it
const VOLUME = 0.12;
const PAUSE_S = 120;

export class AlarmAudio {
  /** `pauseAtServer(seconds)` returns a promise; it counts once a frame says so. */
  constructor({ word, enable, pause }, pauseAtServer) {
    this.word = word;
    this.enableButton = enable;
    this.pauseButton = pause;
    this.context = null;
    this.pausedS = 0;
    this.nextBurst = 0;
    this.playing = null;
    enable.onclick = () => this.toggle();
    pause.onclick = () => this.pause(pauseAtServer);
  }

  toggle() {
    if (this.context === null) this.context = new AudioContext();
    else {
      this.context.close();
      this.context = null;
    }
    this.playing = null;
    this.update([], false, this.pausedS, performance.now());
  }

  async pause(pauseAtServer) {
    try {
      await pauseAtServer(this.pausedS > 0 ? 0 : PAUSE_S);
      this.problem = "";
    } catch (error) {
      this.problem = ` (pause refused: ${error.message})`;
    }
  }

  get state() {
    if (this.pausedS > 0) return "AUDIO PAUSED";
    if (this.context === null) return "AUDIO OFF";
    return this.context.state === "running" ? "AUDIO ON" : "AUDIO OFF";
  }

  /** Sound for `alarms` as shown now; a `fault` of the display itself sounds as high, and no pause is known then. */
  update(alarms, fault, pausedS, nowMs) {
    this.pausedS = pausedS;
    const state = this.state;
    const left = Math.ceil(pausedS);
    const rest = state === "AUDIO PAUSED" ? ` ${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}` : "";
    const text = state + rest + (this.problem ?? "");
    if (this.word.textContent !== text) this.word.textContent = text;
    this.word.className = `audio ${state === "AUDIO ON" ? "on" : "off"}`;
    this.enableButton.textContent = this.context === null ? "Enable sound" : "Sound off";
    this.pauseButton.textContent = pausedS > 0 ? "End pause" : "Pause 2 min";
    this.pauseButton.disabled = state === "AUDIO OFF";
    const sounding = alarms.filter((a) => a.phase !== "acknowledged").map((a) => a.priority);
    const priority = fault ? "high" : ["high", "medium", "low"].find((p) => sounding.includes(p)) ?? null;
    if (priority !== this.playing) this.nextBurst = 0;
    this.playing = priority;
    if (state === "AUDIO ON" && priority !== null && nowMs >= this.nextBurst) {
      this.nextBurst = nowMs + BURSTS[priority].every * 1000;
      this.burst(BURSTS[priority]);
    }
  }

  burst({ pulses, length, twice }) {
    for (const offset of twice === undefined ? [0] : [0, twice]) {
      for (const [start, hertz] of pulses) this.pulse(this.context.currentTime + 0.02 + offset + start, hertz, length);
    }
  }

  pulse(at, hertz, length) {
    const gain = this.context.createGain();
    gain.connect(this.context.destination);
    gain.gain.setValueAtTime(0, at);
    gain.gain.linearRampToValueAtTime(VOLUME, at + 0.02);
    gain.gain.setValueAtTime(VOLUME, at + length - 0.03);
    gain.gain.linearRampToValueAtTime(0, at + length);
    const wave = this.context.createPeriodicWave(new Float32Array([0, ...HARMONICS.map(() => 0)]), new Float32Array([0, ...HARMONICS]));
    const tone = this.context.createOscillator();
    tone.setPeriodicWave(wave);
    tone.frequency.value = hertz;
    tone.connect(gain);
    tone.start(at);
    tone.stop(at + length);
  }
}
