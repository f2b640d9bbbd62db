"""What is true of any diffusion model: noise levels, units, samplers, rejection."""
