// Owns: the cover that appears when this page's own thread hangs. Such a page cannot hide its old picture, but the
// browser's compositor can: it runs an animation towards an opaque cover, which a living page keeps setting back.

const COVER_AFTER_MS = 600;
const FEED_EVERY_MS = 100;

export class FrozenGuard {
  constructor(cover) {
    const frames = [{ opacity: 0 }, { opacity: 0, offset: 0.98 }, { opacity: 1 }];
    this.animation = cover.animate(frames, { duration: COVER_AFTER_MS, fill: "forwards" });
    this.fedAt = -Infinity;
  }

  feed(nowMs) {
    if (nowMs - this.fedAt < FEED_EVERY_MS) return;
    this.fedAt = nowMs;
    this.animation.currentTime = 0;
    if (this.animation.playState !== "running") this.animation.play();
  }
}
