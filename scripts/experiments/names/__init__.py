"""Do names by the semantic head, and by an image-text model, fit what they are given to?"""
