"""Apply layer plans to a backbone: kernels, widths, pools, and what the new shapes inherit."""
