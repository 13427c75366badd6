"""The commands of ``navsrv``, a module each."""
