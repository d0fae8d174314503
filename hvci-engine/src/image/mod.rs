//! Images as containers: headers, sections, permissions, hash ranges, and what is odd about them. No certificate is read here.
