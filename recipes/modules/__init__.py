"""How families are trained: LightningModules."""
