"""A small trainable model beside a frozen one.

May import training and what is below.
"""
