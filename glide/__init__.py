"""glide"""
