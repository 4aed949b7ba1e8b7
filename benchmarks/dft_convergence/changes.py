"""What the study of DFT's settings changes, and on which hosts."""

HOSTS = {  # small ones of every kind
    "MoS2-2H:Ta-Se": "metal",
    "Janus-1T:Bi-Te-I": "polar, gapped",
    "Janus-1T:Ru-Te-Se": "polar, metal",
    "CrI3:V-Br": "magnetic",
    "graphene:Al-P": "planar, gapped",
    "MXene-M2X:Sr-N": "bare MXene",
    "silicene:Sn-Te": "buckled, gapped",
}
CHANGES = {
    "reference": {},
    "k 12 Å": {"kpoint_length": 12.0},
    "k 18 Å": {"kpoint_length": 18.0},
    "k 36 Å": {"kpoint_length": 36.0},
    "500 eV": {"cutoff": 500.0},
    "300 eV": {"cutoff": 300.0},
    "vacuum 18 Å": {"vacuum": 18.0},
    "vacuum 9 Å": {"vacuum": 9.0},
    "spin on all": {"spin": "all"},
    "no spin": {"spin": "none"},
    "LCAO dzp": {"mode": "dzp"},
    "smearing 0.05 eV": {"smearing": 0.05},
    "tolerance 1e-3": {"tolerance": 1e-3},
}
