"""The live page: a run folder, or a folder of them, served while sweeps write into it. It only reads."""
