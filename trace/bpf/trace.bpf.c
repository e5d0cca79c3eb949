//go:build ignore

// What happens to the files of some mounts, as the kernel sees it: FUSE requests, page cache, and sleeps of those who wait.
// It attaches to tracepoints by BTF and to nothing else.

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

enum kind {
	SEND = 1,  // a request was sent: a unique, b node, c offset, d size
	END = 2,   // and answered: a unique, d error
	GET = 3,   // a read has its pages: a inode, b first, c last index
	FAULT = 4, // a page fault wants a page: a inode, b index
	ADD = 5,   // pages came into the cache: a inode, b index, c pages
	MAP = 6,   // cached pages around a fault were mapped: a inode, b first, c last index
	SLEEP = 7, // somebody has slept since a, with b node and c unique of what it asked for last
};

#define FUSE_READ 15
#define TASK_INTERRUPTIBLE 1
#define TASK_UNINTERRUPTIBLE 2
#define PG_head 6

struct event {
	u64 ts; // CLOCK_MONOTONIC, ns
	u64 a, b, c;
	u32 d;
	u32 dev; // as the kernel has it: major << 20 | minor
	u32 tid, tgid;
	u16 kind, op;
	char comm[16];
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

// The devices of the mounts that are traced.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u8);
} devices SEC(".maps");

// What a task has asked one of the mounts for last, and since when it sleeps.
struct asked {
	u64 node, unique, since;
	u32 dev;
	u32 pages; // it waits for pages, and may do so again and again
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct asked);
} asking SEC(".maps");

// How many events did not fit.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

static __always_inline struct event *reserve(u16 kind, u32 dev)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		u32 zero = 0;
		u64 *n = bpf_map_lookup_elem(&lost, &zero);
		if (n)
			*n += 1;
		return 0;
	}
	u64 id = bpf_get_current_pid_tgid();
	e->ts = bpf_ktime_get_ns();
	e->a = e->b = e->c = 0;
	e->d = 0;
	e->dev = dev;
	e->tid = id;
	e->tgid = id >> 32;
	e->kind = kind;
	e->op = 0;
	e->pad = 0;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	return e;
}

static __always_inline bool traced(u32 dev)
{
	return bpf_map_lookup_elem(&devices, &dev) != 0;
}

static __always_inline void ask(u64 node, u64 unique, u32 dev, u32 pages)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct asked q = {.node = node, .unique = unique, .dev = dev, .pages = pages};
	bpf_map_update_elem(&asking, &tid, &q, 0);
}

SEC("tp_btf/fuse_request_send")
int BPF_PROG(fuse_request_send, const struct fuse_req *req)
{
	u32 dev = BPF_CORE_READ(req, fm, fc, dev);
	if (!traced(dev))
		return 0;
	u64 unique = BPF_CORE_READ(req, in.h.unique), node = BPF_CORE_READ(req, in.h.nodeid);
	u32 op = BPF_CORE_READ(req, in.h.opcode);
	ask(node, unique, dev, op == FUSE_READ);
	struct event *e = reserve(SEND, dev);
	if (!e)
		return 0;
	e->a = unique;
	e->b = node;
	e->op = op;
	if (op == FUSE_READ) {
		struct fuse_read_in in = {};
		const void *arg = BPF_CORE_READ(req, args, in_args[0].value);
		if (!bpf_probe_read_kernel(&in, sizeof(in), arg)) {
			e->c = in.offset;
			e->d = in.size;
		}
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("tp_btf/fuse_request_end")
int BPF_PROG(fuse_request_end, const struct fuse_req *req)
{
	u32 dev = BPF_CORE_READ(req, fm, fc, dev);
	if (!traced(dev))
		return 0;
	struct event *e = reserve(END, dev);
	if (!e)
		return 0;
	e->a = BPF_CORE_READ(req, in.h.unique);
	e->op = BPF_CORE_READ(req, in.h.opcode);
	e->d = BPF_CORE_READ(req, out.h.error);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

static __always_inline int page_event(u16 kind, struct address_space *mapping, u64 first, u64 last)
{
	struct inode *host = BPF_CORE_READ(mapping, host);
	u32 dev = BPF_CORE_READ(host, i_sb, s_dev);
	if (!traced(dev))
		return 0;
	u64 ino = BPF_CORE_READ(host, i_ino);
	if (kind == FAULT || kind == GET)
		ask(ino, 0, dev, 1);
	struct event *e = reserve(kind, dev);
	if (!e)
		return 0;
	e->a = ino;
	e->b = first;
	e->c = last;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("tp_btf/mm_filemap_get_pages")
int BPF_PROG(filemap_get_pages, struct address_space *mapping, unsigned long first, unsigned long last)
{
	return page_event(GET, mapping, first, last);
}

SEC("tp_btf/mm_filemap_map_pages")
int BPF_PROG(filemap_map_pages, struct address_space *mapping, unsigned long first, unsigned long last)
{
	return page_event(MAP, mapping, first, last);
}

SEC("tp_btf/mm_filemap_fault")
int BPF_PROG(filemap_fault, struct address_space *mapping, unsigned long index)
{
	return page_event(FAULT, mapping, index, index);
}

SEC("tp_btf/mm_filemap_add_to_page_cache")
int BPF_PROG(filemap_add, struct folio *folio)
{
	u64 pages = 1, flags;
	const struct folio___6_18 *wrapped = (const void *)folio; // its flags are a struct since Linux 6.18
	if (bpf_core_field_exists(wrapped->flags.f))
		flags = BPF_CORE_READ(wrapped, flags.f);
	else
		flags = BPF_CORE_READ(folio, flags);
	if (flags & (1UL << PG_head) && bpf_core_field_exists(folio->_nr_pages))
		pages = BPF_CORE_READ(folio, _nr_pages);
	return page_event(ADD, BPF_CORE_READ(folio, mapping), BPF_CORE_READ(folio, index), pages);
}

// A task that has asked for something goes to sleep, or is awake again.
SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int state)
{
	u32 tid = prev->pid;
	struct asked *q = bpf_map_lookup_elem(&asking, &tid);
	if (q && !preempt) {
		// A request is waited for interruptibly at first; a page never is.
		if (state & TASK_UNINTERRUPTIBLE || (state & TASK_INTERRUPTIBLE && !q->pages))
			q->since = bpf_ktime_get_ns();
		else if (state)
			bpf_map_delete_elem(&asking, &tid);
	}
	tid = next->pid;
	q = bpf_map_lookup_elem(&asking, &tid);
	if (!q || !q->since)
		return 0;
	u64 since = q->since;
	q->since = 0;
	struct event *e = reserve(SLEEP, q->dev);
	if (!e)
		return 0;
	e->tid = tid;
	e->tgid = next->tgid;
	e->a = since;
	e->b = q->node;
	e->c = q->unique;
	bpf_probe_read_kernel_str(e->comm, sizeof(e->comm), next->comm);
	bpf_ringbuf_submit(e, 0);
	if (!q->pages)
		bpf_map_delete_elem(&asking, &tid);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
