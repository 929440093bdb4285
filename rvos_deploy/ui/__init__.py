"""Show a bundle on a page: a video or a camera and sentences in, masks to look at out.

``page.py`` lays the page out. ``visitors.py`` keeps what each visitor does apart.
``video_session.py`` and ``camera_session.py`` segment in a thread. ``levels.py`` keeps masks for
every threshold, and ``downloads.py`` writes files.
"""
