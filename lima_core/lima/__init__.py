"""LiMA (Xu et al., ICCV 2025): cross-view aggregation, long-term propagation, cross-sequence alignment."""
