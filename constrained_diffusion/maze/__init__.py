"""Mazes: their geometry, the controllers and the simulator that act in them, recordings, zones and pictures."""

from constrained_diffusion.maze.layout import Maze

__all__ = ["Maze"]
