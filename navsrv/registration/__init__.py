"""Where the patient *is*: volumes and X-rays to CT, with an honest error.  Refuses devices and the loop."""
