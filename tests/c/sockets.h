/* Connected pairs of stream sockets, in blocking mode (peer.c). */
#ifndef RT_SOCKETS_H
#define RT_SOCKETS_H

void stream_pair(int fds[2]);
void tcp_pair(int fds[2]);
/* The first sends, the second receives, with buffers of some 16 KiB. */
void small_tcp_pair(int fds[2]);

#endif
