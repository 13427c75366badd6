"""A needle in still images: pixels or voxels in, tip, axis and covariance out; refuses live poses, files and clocks."""
