"""SeMOPO (Wan et al., ICML 2024) and the methods it is compared with."""
